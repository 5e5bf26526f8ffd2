//! What mirrors answered beside the originals.

use serde_json::{Value, json};

use super::pages::View;
use crate::compare::{Comparison, Difference, Sample};

impl View {
    pub fn comparisons(&self) -> Value {
        let all = self.account.comparisons().all();
        json!({ "items": all.iter().map(comparison).collect::<Vec<_>>() })
    }
}

fn comparison(of: &Comparison) -> Value {
    let totals = &of.totals;
    let [status, header, body] = totals.kinds;
    json!({
        "rule": of.rule,
        "mirror": of.mirror.to_string(),
        "compared": totals.compared,
        "different": totals.different,
        "unanswered": totals.unanswered,
        "status": status,
        "header": header,
        "body": body,
        "original_us": totals.original_us,
        "copy_us": totals.copy_us,
        "samples": of.samples.iter().map(sample).collect::<Vec<_>>(),
    })
}

fn sample(of: &Sample) -> Value {
    let difference = |found: &Difference| {
        json!({
            "kind": found.kind.as_str(),
            "at": found.at,
            "original": found.original,
            "copy": found.copy,
        })
    };
    let differences: Vec<Value> = of.differences.iter().map(difference).collect();
    json!({ "time_ms": of.time_ms, "path": of.path, "differences": differences })
}
