//! The edge's door: what only the mesh may say is taken away before anything is matched, and the application is told where a
//! request came from. As a stock Envoy does it there: names with `_` go, whatever they are; addresses are appended.

use phalanx_model::resource::colour::EdgeColours;
use phalanx_model::resource::gateway::{STRIPPED, STRIPPED_PREFIXES};
use phalanx_relay::{Checked, Field, Name};

use crate::colour::Given;
use crate::context::{Outside, StreamContext};

const ADDRESSES: &str = "x-forwarded-for";
const SCHEME: &str = "x-forwarded-proto";

pub(super) fn admit(
    colours: &EdgeColours,
    request: &mut Checked,
    context: &mut StreamContext<'_>,
    outside: &Outside,
) {
    let headers = request.headers_mut();
    let given = Given::find(colours, headers, context.peer, &mut context.rng);
    headers.remove_where(|name, _| is_of_the_mesh(name));
    given.put(headers);
    let scheme = if outside.is_secured { "https" } else { "http" };
    if let Ok(field) = Field::new(SCHEME, scheme) {
        headers.set_field(&field);
    }
    let Some(peer) = context.peer else { return };
    let mut addresses = String::new();
    if let Ok(field) = Field::new(ADDRESSES, "") {
        let said = headers.get_all(field.name());
        for value in said.filter_map(|value| std::str::from_utf8(value).ok()) {
            addresses.push_str(value);
            addresses.push_str(", ");
        }
    }
    addresses.push_str(&peer.to_canonical().to_string());
    if let Ok(field) = Field::new(ADDRESSES, &addresses) {
        headers.set_field(&field);
    }
}

fn is_of_the_mesh(name: Name<'_>) -> bool {
    let name = name.as_bytes();
    let begins = |prefix: &&str| name.starts_with(prefix.as_bytes());
    name.contains(&b'_')
        || STRIPPED.iter().any(|own| own.as_bytes() == name)
        || STRIPPED_PREFIXES.iter().any(begins)
}
