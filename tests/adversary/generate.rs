//! Generates a program from a seed.
//!
//! For each program, the generator first draws how likely each kind of step is, and leaves many kinds out: few kinds in
//! many combinations find more faults than all kinds in each program. Depth, steps, calls and sleeps of a program are
//! bounded. So a program that gets the capacity it needs ends long before any of its waits could time out.

use fastrand::Rng;

use super::program::{Around, Client, Does, Part, Program, Request, Shape, Step, View, ViewKind};

/// How many programs run on the same server, one after the other.
pub const PER_SHAPE: u64 = 24;

/// How deep calls of views are nested.
const DEPTH_MAX: u32 = 4;
/// How deep steps are nested within one function.
const NESTED_MAX: u32 = 3;
/// Limits of one request: its steps, and its calls of views.
const STEPS_MAX: u32 = 40;
const CALLS_MAX: u32 = 8;
/// How long all requests of a program sleep in all, without [`LEFT_NAP_MS`].
const NAPS_MAX_MS: u64 = 600;
/// A sleep that is added to each request whose client disconnects: long enough to notice a request that goes on
/// afterwards.
const LEFT_NAP_MS: u64 = 2200;

/// The kinds of steps, and how likely each is in a program that does not leave it out.
const KINDS: [(Kind, u32); 22] = [
    (Kind::Insert, 30),
    (Kind::Call, 30),
    (Kind::Block, 12),
    (Kind::Join, 16),
    (Kind::Pin, 8),
    (Kind::Stream, 8),
    (Kind::Nap, 8),
    (Kind::Bump, 6),
    (Kind::See, 8),
    (Kind::Broken, 3),
    (Kind::Dropped, 4),
    (Kind::Race, 4),
    (Kind::Publish, 5),
    (Kind::Set, 5),
    (Kind::Get, 5),
    (Kind::Fetch, 1),
    (Kind::Leak, 3),
    (Kind::Status, 2),
    (Kind::Rollback, 2),
    (Kind::Error, 3),
    (Kind::Panic, 2),
    (Kind::Loop, 1),
];

/// The kinds of steps in a program about calls of views, and how likely each is.
const CALLS: [(Kind, u32); 7] = [
    (Kind::Call, 40),
    (Kind::Join, 25),
    (Kind::Insert, 15),
    (Kind::Block, 8),
    (Kind::Nap, 8),
    (Kind::Pin, 2),
    (Kind::Bump, 2),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Insert,
    Call,
    Block,
    Join,
    Pin,
    Stream,
    Nap,
    Bump,
    See,
    Broken,
    Dropped,
    Race,
    Publish,
    Set,
    Get,
    Fetch,
    Leak,
    Status,
    Rollback,
    Error,
    Panic,
    Loop,
}

/// The position of a step.
#[derive(Debug, Clone, Copy)]
struct Place {
    depth: u32,
    nested: u32,
    /// Whether other steps of the same function run at the same time.
    at_once: bool,
}

struct Generator {
    random: Rng,
    shape: Shape,
    weights: Vec<(Kind, u32)>,
    kinds: Vec<ViewKind>,
    last_id: u32,
    steps_left: u32,
    calls_left: u32,
    naps_left_ms: u64,
    loops_left: u32,
}

/// The program of a seed, without the kinds of steps that are named in `without`. The name `leaving` stands for clients that
/// disconnect.
pub fn program(seed: u64, without: &[String]) -> Program {
    let mut random = Rng::with_seed(seed);
    let shape = shape(seed / PER_SHAPE);
    let is_wanted = |kind: Kind| {
        !without
            .iter()
            .any(|name| name.eq_ignore_ascii_case(&format!("{kind:?}")))
    };
    // One program of three is about joined calls. The others have about half of the kinds, and always inserts.
    let weights: Vec<(Kind, u32)> = match random.u32(..3) {
        0 => CALLS.to_vec(),
        _ => {
            let some = KINDS
                .iter()
                .filter(|(kind, _)| *kind == Kind::Insert || random.bool());
            let some: Vec<_> = some.copied().collect();
            some.into_iter()
                .map(|(kind, weight)| (kind, weight * random.u32(1..4)))
                .collect()
        }
    };
    let weights = weights
        .into_iter()
        .filter(|(kind, _)| is_wanted(*kind))
        .collect();
    let mut kinds = vec![
        ViewKind::Plain,
        ViewKind::Plain,
        ViewKind::Atomic,
        ViewKind::Atomic,
    ];
    if random.u32(..3) == 0 {
        kinds.push(ViewKind::ALL[random.usize(..ViewKind::ALL.len())]);
    }
    let mut generator = Generator {
        random,
        shape,
        weights,
        kinds,
        last_id: 0,
        steps_left: 0,
        calls_left: 0,
        naps_left_ms: NAPS_MAX_MS,
        loops_left: 1,
    };
    let mut requests = generator.requests();
    if without.iter().any(|name| name == "leaving") {
        requests.retain(|request| request.client.leaves_after_ms().is_none());
    }
    Program {
        seed,
        shape: generator.shape,
        requests,
    }
}

/// The server for a block of programs, with small random capacities.
fn shape(number: u64) -> Shape {
    let mut random = Rng::with_seed(number ^ 0x005e_1ec7);
    let around = |is_async: bool, name: &str| Around {
        is_async,
        name: name.to_owned(),
    };
    let workers = random.u32(1..=2);
    let (app, module) = match random.u32(..5) {
        0 => (vec![around(true, "first"), around(false, "first")], vec![]),
        1 => (vec![around(false, "first")], vec![around(true, "second")]),
        2 => (
            vec![],
            vec![around(true, "second"), around(false, "second")],
        ),
        _ => (vec![], vec![]),
    };
    Shape {
        workers,
        workers_max: random.u32(workers.max(2)..=4),
        loops: random.u32(1..=2),
        in_flight_max: 4,
        connections: random.u32(2..=4),
        readers: random.u32(1..=2),
        app,
        module,
    }
}

impl Generator {
    fn requests(&mut self) -> Vec<Request> {
        let count = self.random.usize(1..=6);
        // In half of the programs, some requests are copies: capacity gets scarce when many requests want the same.
        let copies = if self.random.bool() {
            self.random.usize(1..=count)
        } else {
            1
        };
        let mut requests = Vec::new();
        while requests.len() < count {
            let request = self.request();
            let room = count - requests.len();
            // A request that takes long is not copied.
            let copies = match request.naps_ms() > NAPS_MAX_MS / 4 || request.loops() > 0 {
                true => 1,
                false => copies,
            };
            for _ in 0..copies.min(room) {
                let copy = self.copied(&request);
                requests.push(copy);
            }
        }
        requests
    }

    fn request(&mut self) -> Request {
        (self.steps_left, self.calls_left) = (self.random.u32(2..STEPS_MAX), CALLS_MAX);
        let mut part = self.part(0);
        let client = self.client();
        if client.leaves_after_ms().is_some() {
            let at = self.random.usize(..=part.steps.len());
            let nap = self.step(Does::Nap { ms: LEFT_NAP_MS });
            part.steps.insert(at, nap);
        }
        let delay_ms = if self.random.bool() {
            0
        } else {
            self.random.u64(..30)
        };
        Request {
            delay_ms,
            client,
            part,
        }
    }

    fn client(&mut self) -> Client {
        let after_ms = self.random.u64(1..300);
        match self.random.u32(..30) {
            0 => Client::Leaves { after_ms },
            1 => Client::LeavesBehindLine { after_ms },
            2 => Client::LeavesBehindRequest { after_ms },
            3 => Client::HalfCloses,
            4 => Client::Pipelines,
            _ => Client::Stays,
        }
    }

    fn part(&mut self, depth: u32) -> Part {
        let view = View {
            is_async: self.random.bool(),
            kind: self.kinds[self.random.usize(..self.kinds.len())],
        };
        let mut around = Vec::new();
        for place in 0..self.shape.around(depth == 0).len() {
            if self.random.bool() {
                around.push((place, self.middleware(depth)));
            }
        }
        let place = Place {
            depth,
            nested: 0,
            at_once: false,
        };
        Part {
            view,
            around,
            steps: self.steps(place),
        }
    }

    /// Steps of a middleware, one of which runs the rest of the chain: among the steps, or nested in one of them.
    fn middleware(&mut self, depth: u32) -> Vec<Step> {
        let mut steps = Vec::new();
        for _ in 0..self.random.u32(..3) {
            steps.extend(self.random_step(Place {
                depth,
                nested: 1,
                at_once: true,
            }));
        }
        let mut next = self.step(Does::Next);
        next.must = self.random.u32(..4) != 0;
        let holders: Vec<usize> = (0..steps.len())
            .filter(|at| takes_next(&steps[*at].does))
            .collect();
        if !holders.is_empty() && self.random.bool() {
            let holder = holders[self.random.usize(..holders.len())];
            if let Some(within) = inner_mut(&mut steps[holder].does) {
                let at = self.random.usize(..=within.len());
                within.insert(at, next);
            }
        } else {
            let at = self.random.usize(..=steps.len());
            steps.insert(at, next);
        }
        steps
    }

    fn steps(&mut self, place: Place) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        for _ in 0..self.random.u32(1..=4) {
            let Some(mut step) = self.random_step(place) else {
                continue;
            };
            // `Does::See` counts the rows of an insert that comes earlier in this list.
            if let Does::See(id) = &mut step.does {
                let inserted = steps.iter().rev().find(|step| step.does == Does::Insert);
                let Some(inserted) = inserted else { continue };
                *id = inserted.id;
            }
            steps.push(step);
        }
        steps
    }

    fn random_step(&mut self, place: Place) -> Option<Step> {
        if self.steps_left == 0 {
            return None;
        }
        self.steps_left -= 1;
        let kind = self.kind();
        let does = self.does(kind, place)?;
        let mut step = self.step(does);
        step.must =
            matches!(kind, Kind::Insert | Kind::Call | Kind::Block) && self.random.u32(..4) == 0;
        Some(step)
    }

    fn kind(&mut self) -> Kind {
        let all: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.random.u32(..all);
        for (kind, weight) in &self.weights {
            match drawn.checked_sub(*weight) {
                Some(left) => drawn = left,
                None => return *kind,
            }
        }
        Kind::Insert
    }

    /// A random step of this kind. None if the step would exceed a limit.
    fn does(&mut self, kind: Kind, place: Place) -> Option<Does> {
        let deeper = Place {
            nested: place.nested + 1,
            ..place
        };
        let at_once = Place {
            at_once: true,
            ..deeper
        };
        if deeper.nested > NESTED_MAX
            && matches!(
                kind,
                Kind::Block | Kind::Dropped | Kind::Pin | Kind::Stream | Kind::Join | Kind::Race
            )
        {
            return None;
        }
        Some(match kind {
            Kind::Insert => Does::Insert,
            Kind::Broken => Does::Broken,
            Kind::Bump => Does::Bump,
            Kind::See => Does::See(0),
            Kind::Nap => {
                let ms = self.random.u64(1..40).min(self.naps_left_ms);
                self.naps_left_ms -= ms;
                Does::Nap { ms }
            }
            Kind::Block => Does::Block(self.steps(deeper)),
            Kind::Dropped => Does::Dropped(self.steps(deeper)),
            Kind::Pin => Does::Pin(self.steps(deeper)),
            Kind::Stream => Does::Stream {
                steps: self.steps(deeper),
                drain: self.random.bool(),
            },
            Kind::Join => Does::Join(self.steps(at_once)),
            Kind::Race => Does::Race(Some(self.steps(at_once)).filter(|steps| !steps.is_empty())?),
            Kind::Call => {
                if place.depth + 1 >= DEPTH_MAX || self.calls_left == 0 {
                    return None;
                }
                self.calls_left -= 1;
                Does::Call(Box::new(self.part(place.depth + 1)))
            }
            Kind::Publish => self.event(),
            Kind::Set => Does::Set(self.name()),
            Kind::Get => Does::Get(self.name()),
            Kind::Fetch => Does::Fetch,
            Kind::Leak => {
                // A leaked pin or block stays open until the function ends. A step that runs at the same time would
                // wait for the end of the function, and the function for that step. So only results are leaked there.
                let some = if place.at_once { 1 } else { 3 };
                let what = ["rows", "pin", "begin"][self.random.usize(..some)];
                Does::Leak(what.to_owned())
            }
            Kind::Status => Does::Status([200, 400, 500][self.random.usize(..3)]),
            Kind::Rollback => Does::Rollback,
            Kind::Error => Does::End(["error", "refuse"][self.random.usize(..2)].to_owned()),
            Kind::Panic => Does::End("panic".to_owned()),
            Kind::Loop => {
                self.loops_left = self.loops_left.checked_sub(1)?;
                Does::End("loop".to_owned())
            }
        })
    }

    /// A step that publishes an event. The subscribers' steps begin with one that only shows, by its note in the log,
    /// that the subscriber was called.
    fn event(&mut self) -> Does {
        let name = self.name();
        let mut steps = vec![self.step(Does::Get(name))];
        if self.random.bool() {
            steps.push(self.step(Does::Insert));
        }
        if self.random.u32(..6) == 0 {
            steps.push(self.step(Does::End("error".to_owned())));
        }
        Does::Publish(steps)
    }

    fn name(&mut self) -> String {
        ["one", "two"][self.random.usize(..2)].to_owned()
    }

    fn step(&mut self, does: Does) -> Step {
        self.last_id += 1;
        Step {
            id: self.last_id,
            must: false,
            does,
        }
    }

    /// A copy of the request, whose steps have numbers of their own.
    fn copied(&mut self, request: &Request) -> Request {
        let mut copy = request.clone();
        let offset = self.last_id;
        for steps in lists_mut(&mut copy.part) {
            renumber(steps, offset);
        }
        self.last_id = 2 * offset;
        copy
    }
}

/// Adds `offset` to the numbers of the steps, and to those in `Does::See`. The recursion is as deep as the program is
/// nested.
fn renumber(steps: &mut [Step], offset: u32) {
    for step in steps {
        step.id += offset;
        match &mut step.does {
            Does::See(id) => *id += offset,
            Does::Call(part) => lists_mut(part).for_each(|steps| renumber(steps, offset)),
            Does::Publish(steps) => renumber(steps, offset),
            does => {
                if let Some(steps) = inner_mut(does) {
                    renumber(steps, offset);
                }
            }
        }
    }
}

fn takes_next(does: &Does) -> bool {
    matches!(
        does,
        Does::Block(_) | Does::Pin(_) | Does::Stream { .. } | Does::Join(_)
    )
}

/// The lists of steps of a view and of the middleware around it.
pub fn lists_mut(part: &mut Part) -> impl Iterator<Item = &mut Vec<Step>> {
    part.around
        .iter_mut()
        .map(|(_, steps)| steps)
        .chain([&mut part.steps])
}

/// The steps nested in a step, as [`Step::inner`] has them, to be changed. None for a step that cannot have any.
pub fn inner_mut(does: &mut Does) -> Option<&mut Vec<Step>> {
    match does {
        Does::Block(steps)
        | Does::Dropped(steps)
        | Does::Pin(steps)
        | Does::Stream { steps, .. }
        | Does::Join(steps)
        | Does::Race(steps) => Some(steps),
        _ => None,
    }
}
