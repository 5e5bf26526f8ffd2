use phalanx_proto::phalanx::limits::v1::limits_server::Limits as _;
use tonic::Code;

use super::*;
use crate::access::Who;
use crate::world::fixture::Fixture;

const POLICY: &str = "
apiVersion: phalanx.dev/v1alpha1
kind: BackendPolicy
metadata: {name: p, namespace: arena}
spec:
  targetRefs: [{kind: Service, name: battle}]
  rateLimit: {global: {requests: 10, per: 1h}}
";

fn limits() -> Limits {
    let world = Fixture::yaml(POLICY).world();
    let (sender, worlds) = watch::channel(Arc::new(world));
    std::mem::forget(sender); // the world does not change any more
    Limits::new(worlds, None)
}

async fn lease(
    limits: &Limits,
    node: &str,
    who: Who,
    policy: &str,
    wanted: u32,
) -> Result<wire::Grant, Status> {
    let ask = wire::Ask {
        policy: policy.into(),
        wanted,
        ..wire::Ask::default()
    };
    let mut request = Request::new(wire::LeaseRequest {
        node: node.into(),
        asks: vec![ask],
    });
    request.extensions_mut().insert(who);
    let answer = limits.lease(request).await?;
    Ok(answer.into_inner().grants[0])
}

#[tokio::test]
async fn tokens_are_leased_to_whom_the_policy_means_and_to_nobody_else() {
    let limits = limits();
    let ask = |node, policy| lease(&limits, node, Who::Open, policy, 4);
    let policy = "BackendPolicy/arena/p";
    let grant = ask("arena/battle/1", policy).await.unwrap();
    assert_eq!((grant.tokens, grant.unanswered), (4, false));
    for (node, policy) in [
        ("arena/lobby/1", policy),
        ("other/battle/1", policy),
        ("arena/battle/1", "BackendPolicy/arena/q"),
        ("arena/battle/1", "p"),
    ] {
        let grant = ask(node, policy).await.unwrap();
        assert!(grant.unanswered, "{node} {policy}");
    }
    let refused = ask("battle", policy).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = lease(&limits, "arena/battle/1", Who::Nobody, policy, 1).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
}
