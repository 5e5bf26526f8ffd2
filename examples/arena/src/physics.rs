//! Physics: round bodies on springs to the centre of a square arena, elastic against each other and the walls.
//! Fixed point (16 fraction bits) and no floats, so that every machine and version computes the same.

use crate::call;
use crate::proto::arena::v1 as wire;
use crate::serve::{self, ServiceConfig, Stop};

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use wire::physics_client::PhysicsClient;
use wire::physics_server::{Physics, PhysicsServer};

pub const NAME: &str = "physics";

/// One unit of length.
pub const UNIT: i64 = 1 << 16;
/// The arena reaches this far from its centre on both axes.
pub const HALF: i64 = 512 * UNIT;
/// Per tick. Below the sum of two radii, so that bodies can't pass through each other unseen.
pub const SPEED_MAX: i64 = 32 * UNIT;
/// The spring's pull is the distance divided by two to this power; 8 makes a body swing in about 100 ticks.
const SPRING_SHIFT: u32 = 8;

const BODIES_MAX: usize = 16;
const TICKS_MAX: u32 = 4096;
const IMPACTS_MAX: usize = 256;
const MASS_MAX: u32 = 1000;
const RADIUS_MAX: u32 = 128;

pub async fn run(
    config: ServiceConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    serve(config.bind().await?, config, shutdown).await
}

/// The same on a socket that is bound already.
pub async fn serve(
    listener: TcpListener,
    _config: ServiceConfig,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let stop = Stop::on(shutdown);
    serve::grpc(
        NAME,
        listener,
        Routes::new(PhysicsServer::new(Engine)),
        &stop,
    )
    .await
}

/// A client of the service, by its name.
pub fn client(
    outbound: std::net::SocketAddr,
) -> anyhow::Result<PhysicsClient<tonic::transport::Channel>> {
    Ok(PhysicsClient::new(call::grpc(outbound, NAME)?))
}

struct Engine;

#[tonic::async_trait]
impl Physics for Engine {
    async fn step(
        &self,
        request: Request<wire::StepRequest>,
    ) -> Result<Response<wire::StepReply>, Status> {
        let mut world = World::try_new(request.into_inner().bodies)?;
        world.step(1);
        Ok(Response::new(wire::StepReply {
            bodies: world.bodies,
            impacts: world.impacts,
        }))
    }

    async fn simulate(
        &self,
        request: Request<wire::SimulateRequest>,
    ) -> Result<Response<wire::SimulateReply>, Status> {
        let request = request.into_inner();
        if !(1..=TICKS_MAX).contains(&request.ticks) {
            return Err(PhysicsError::Ticks(request.ticks).into());
        }
        let mut world = World::try_new(request.bodies)?;
        for tick in 1..=request.ticks {
            world.step(tick);
        }
        Ok(Response::new(wire::SimulateReply {
            bodies: world.bodies,
            impacts: world.impacts,
        }))
    }
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PhysicsError {
    #[error("{0} bodies, the most is {BODIES_MAX}")]
    Bodies(usize),
    #[error("{0} ticks, a simulation takes 1 to {TICKS_MAX}")]
    Ticks(u32),
    #[error("body {0} is outside of the arena")]
    Place(usize),
    #[error("body {0} is too fast")]
    Speed(usize),
    #[error("body {0} needs a mass of 1 to {MASS_MAX} and a radius of 1 to {RADIUS_MAX}")]
    Shape(usize),
}

impl From<PhysicsError> for Status {
    fn from(error: PhysicsError) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

/// Bodies whose numbers are small enough for 64 bits in every product below.
#[derive(Debug)]
pub struct World {
    pub bodies: Vec<wire::Body>,
    pub impacts: Vec<wire::Impact>,
}

impl World {
    pub fn try_new(bodies: Vec<wire::Body>) -> Result<Self, PhysicsError> {
        if bodies.len() > BODIES_MAX {
            return Err(PhysicsError::Bodies(bodies.len()));
        }
        for (place, body) in bodies.iter().enumerate() {
            if body.x.unsigned_abs() > HALF as u64 || body.y.unsigned_abs() > HALF as u64 {
                return Err(PhysicsError::Place(place));
            }
            if body.vx.unsigned_abs() > SPEED_MAX as u64
                || body.vy.unsigned_abs() > SPEED_MAX as u64
            {
                return Err(PhysicsError::Speed(place));
            }
            if !(1..=MASS_MAX).contains(&body.mass) || !(1..=RADIUS_MAX).contains(&body.radius) {
                return Err(PhysicsError::Shape(place));
            }
        }
        Ok(Self {
            bodies,
            impacts: Vec::new(),
        })
    }

    /// One tick; `tick` is written into the impacts.
    pub fn step(&mut self, tick: u32) {
        for body in &mut self.bodies {
            (body.x, body.vx) = travel(body.x, body.vx);
            (body.y, body.vy) = travel(body.y, body.vy);
        }
        for b in 1..self.bodies.len() {
            let (before, rest) = self.bodies.split_at_mut(b);
            let Some(second) = rest.first_mut() else {
                continue;
            };
            for (a, first) in before.iter_mut().enumerate() {
                let Some(impulse) = collide(first, second) else {
                    continue;
                };
                if self.impacts.len() < IMPACTS_MAX {
                    self.impacts.push(wire::Impact {
                        tick,
                        a: a as u32,
                        b: b as u32,
                        impulse,
                    });
                }
            }
        }
    }
}

/// Place and speed on one axis after one tick.
fn travel(place: i64, speed: i64) -> (i64, i64) {
    let speed = (speed - (place >> SPRING_SHIFT)).clamp(-SPEED_MAX, SPEED_MAX);
    let place = place + speed;
    match place {
        place if place > HALF => (2 * HALF - place, -speed),
        place if place < -HALF => (-2 * HALF - place, -speed),
        place => (place, speed),
    }
}

/// Exchanges momentum along the line between two bodies that touch and approach; the impulse in mass × units per tick.
fn collide(a: &mut wire::Body, b: &mut wire::Body) -> Option<u64> {
    let (dx, dy) = (b.x - a.x, b.y - a.y);
    let reach = i64::from(a.radius + b.radius) * UNIT;
    let square = dx * dx + dy * dy;
    if square > reach * reach {
        return None;
    }
    let distance = square.isqrt();
    let (nx, ny) = if distance == 0 {
        (UNIT, 0)
    } else {
        (dx * UNIT / distance, dy * UNIT / distance)
    };
    let closing = (((b.vx - a.vx) * nx + (b.vy - a.vy) * ny) >> 16)
        .min(0)
        .abs();
    if closing == 0 {
        return None;
    }
    let (mass_a, mass_b) = (i64::from(a.mass), i64::from(b.mass));
    let impulse = 2 * closing * mass_a * mass_b / (mass_a + mass_b);
    let push = |speed: i64, normal: i64, mass: i64| {
        (speed + ((impulse / mass * normal) >> 16)).clamp(-SPEED_MAX, SPEED_MAX)
    };
    (a.vx, a.vy) = (push(a.vx, -nx, mass_a), push(a.vy, -ny, mass_a));
    (b.vx, b.vy) = (push(b.vx, nx, mass_b), push(b.vy, ny, mass_b));
    Some((impulse / UNIT).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(x: i64, y: i64, vx: i64, vy: i64) -> wire::Body {
        wire::Body {
            x: x * UNIT,
            y: y * UNIT,
            vx: vx * UNIT,
            vy: vy * UNIT,
            mass: 10,
            radius: 40,
        }
    }

    fn run(ticks: u32) -> World {
        let mut world = World::try_new(vec![body(-300, 20, 3, 0), body(300, 0, 0, 2)]).unwrap();
        (1..=ticks).for_each(|tick| world.step(tick));
        world
    }

    #[test]
    fn equal_worlds_stay_equal() {
        let (one, two) = (run(600), run(600));
        assert_eq!((one.bodies, one.impacts), (two.bodies, two.impacts));
    }

    #[test]
    fn bodies_on_springs_meet_again_and_again_and_stay_inside() {
        let world = run(2000);
        assert!(world.impacts.len() > 5, "{:?}", world.impacts);
        assert!(
            world
                .bodies
                .iter()
                .all(|body| body.x.abs() <= HALF && body.y.abs() <= HALF)
        );
    }

    #[test]
    fn equal_masses_swap_their_speeds_head_on() {
        let (mut a, mut b) = (body(-30, 0, 4, 0), body(30, 0, -2, 0));
        assert_eq!(collide(&mut a, &mut b), Some(60));
        assert_eq!((a.vx, b.vx), (-2 * UNIT, 4 * UNIT));
        assert_eq!(collide(&mut a, &mut b), None, "they part now");
    }

    #[test]
    fn numbers_that_could_overflow_are_refused() {
        let refused = |body| World::try_new(vec![body]).unwrap_err();
        assert_eq!(refused(body(513, 0, 0, 0)), PhysicsError::Place(0));
        assert_eq!(
            refused(wire::Body {
                x: i64::MIN,
                ..body(0, 0, 0, 0)
            }),
            PhysicsError::Place(0)
        );
        assert_eq!(refused(body(0, 0, 33, 0)), PhysicsError::Speed(0));
        assert_eq!(
            refused(wire::Body {
                mass: 0,
                ..body(0, 0, 0, 0)
            }),
            PhysicsError::Shape(0)
        );
        assert_eq!(
            World::try_new(vec![body(0, 0, 0, 0); 17]).unwrap_err(),
            PhysicsError::Bodies(17)
        );
    }

    #[test]
    fn the_fastest_and_heaviest_bodies_do_not_overflow() {
        let heavy = |x, v| wire::Body {
            mass: MASS_MAX,
            radius: RADIUS_MAX,
            ..body(x, x, v, v)
        };
        let mut world =
            World::try_new(vec![heavy(-512, 32), heavy(512, -32), heavy(0, 32)]).unwrap();
        (1..=TICKS_MAX).for_each(|tick| world.step(tick));
        assert!(!world.impacts.is_empty());
    }
}
