//! The sync functions.

use std::cell::{Cell, RefCell};

use amphi_sdk::prelude::*;
use amphi_sdk::sync::Next;
use serde_json::Value as Json;

use crate::steps::{self, Cells, Step, at_once, is_final, told};

/// A guest function while it does its steps.
struct Part<'a> {
    cx: &'a sync::Context,
    headers: Headers,
    /// In middleware: the request and the rest of the chain, until the rest is run.
    rest: RefCell<Option<(Request, Next)>>,
    /// The response of the rest of the chain.
    response: RefCell<Option<Response>>,
    status: Cell<Option<StatusCode>>,
    /// Headers to add to the view's response.
    more: RefCell<Vec<(String, String)>>,
}

/// Does the steps in its body, without a transaction.
#[view(post, "/sync/run", atomic = false)]
pub fn run(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

/// Does the steps in its body, in a transaction.
#[view(post, "/sync/run/atomic", atomic)]
pub fn run_atomic(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

#[view(post, "/sync/read", atomic = false, read_only)]
pub fn read(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

#[view(post, "/sync/read/atomic", atomic, read_only)]
pub fn read_atomic(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

#[view(post, "/sync/limited", atomic, cpu_ms = 10)]
pub fn limited(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

#[view(post, "/sync/brief", atomic, cpu_ms = 100, timeout_ms = 250)]
pub fn brief(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

#[view(post, "/sync/serializable", atomic, isolation = "serializable")]
pub fn serializable(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

#[view(post, "/sync/repeatable", atomic, isolation = "repeatable-read")]
pub fn repeatable(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

#[view(
    post,
    "/sync/retried",
    atomic,
    isolation = "serializable",
    retries = 10
)]
pub fn retried(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request)
}

#[middleware]
pub fn first(cx: &Context, request: Request, next: Next) -> Result<Response> {
    around(cx, request, next, "sync-first")
}

#[middleware]
pub fn second(cx: &Context, request: Request, next: Next) -> Result<Response> {
    around(cx, request, next, "sync-second")
}

#[middleware]
pub fn third(cx: &Context, request: Request, next: Next) -> Result<Response> {
    around(cx, request, next, "sync-third")
}

/// Does the steps in the event's payload, and writes what they tell into the log.
#[subscriber("orders.*")]
pub fn heard(cx: &Context, event: Event) -> Result<()> {
    let part = Part::new(cx, Headers::new(), None);
    let told = part.run(&steps::parse(&event.payload)?)?;
    log::info!("heard", topic = event.topic, told = Json::from(told));
    Ok(())
}

fn view(cx: &sync::Context, request: Request) -> Result<Response> {
    let part = Part::new(cx, request.headers.clone(), None);
    let told = part.run(&steps::parse(request.body())?)?;
    let mut response = steps::answer(part.status.get().unwrap_or(StatusCode::OK), &told)?;
    for (name, value) in part.more.take() {
        response.headers.append(name, value);
    }
    Ok(response)
}

fn around(cx: &sync::Context, mut request: Request, next: Next, name: &str) -> Result<Response> {
    let steps = steps::of_middleware(&request, name)?;
    request.headers.append("x-seen", name);
    let part = Part::new(cx, request.headers.clone(), Some((request, next)));
    let told = part.run(&steps)?;
    steps::passed_on(part.response.take(), part.status.get(), name, &told)
}

impl<'a> Part<'a> {
    fn new(cx: &'a sync::Context, headers: Headers, rest: Option<(Request, Next)>) -> Part<'a> {
        Part {
            cx,
            headers,
            rest: RefCell::new(rest),
            response: RefCell::new(None),
            status: Cell::new(None),
            more: RefCell::default(),
        }
    }

    fn run(&self, steps: &[Step]) -> Result<Vec<Json>> {
        steps.iter().map(|step| self.tell(step)).collect()
    }

    fn tell(&self, step: &Step) -> Result<Json> {
        let result = self.attempt(step);
        if is_final(step) {
            result
        } else {
            Ok(told(result))
        }
    }

    fn attempt(&self, step: &Step) -> Result<Json> {
        let cx = self.cx;
        if let Some(result) = at_once(cx, &self.headers, step) {
            return result;
        }
        Ok(match step {
            Step::Execute { sql, params } => cx.db().execute(sql, steps::values(params)?)?.into(),
            Step::Query { sql, params } => {
                let rows: Vec<Cells> = cx.db().query(sql, steps::values(params)?)?;
                rows.into_iter().map(|row| row.0).collect()
            }
            Step::Open { sql, rows } => {
                let mut count = 0;
                for row in cx.db().rows::<Cells>(sql, ())?.take(*rows) {
                    row?;
                    count += 1;
                }
                count.into()
            }
            Step::Increment { name } => {
                let sql = "select n from counters where name = $1";
                let n: i64 = cx.db().query_one(sql, (name,))?.unwrap_or(0);
                let sql = "update counters set n = $1 where name = $2";
                cx.db().execute(sql, (n + 1, name))?.into()
            }
            Step::Atomic { steps } => cx.atomic(|_| self.run(steps))?.pop().unwrap_or_default(),
            Step::Pinned { steps } => {
                let pinned = cx.db().pin()?;
                let told = self.run(steps)?;
                drop(pinned);
                told.into()
            }
            Step::Join { steps } => self.run(steps)?.into(),
            Step::Must { step } => self.attempt(step)?,
            Step::View { path, steps } => {
                let response = cx
                    .subrequest("POST", path)
                    .body(serde_json::to_vec(steps)?)
                    .send()?;
                steps::answered(&response)
            }
            Step::Fetch { url } => cx.http().get(url).send()?.status.as_u16().into(),
            Step::Next => {
                let rest = self.rest.take();
                let (request, next) = rest.ok_or_else(|| Error::internal("there is no rest"))?;
                let response = next.run(request)?;
                let status = response.status.as_u16().into();
                self.response.replace(Some(response));
                status
            }
            Step::Nap { ms } => {
                std::thread::sleep(Duration::from_millis(*ms));
                Json::Null
            }
            Step::Keep { name, value, times } => {
                let mut kept = true;
                for _ in 0..*times {
                    cx.set(name, value)?;
                    std::thread::sleep(Duration::ZERO);
                    kept &= cx.get(name).as_ref() == Some(value);
                }
                kept.into()
            }
            Step::Rollback => {
                cx.set_rollback();
                Json::Null
            }
            Step::Repeat { times, step } => {
                for _ in 0..*times {
                    self.attempt(step)?;
                }
                Json::Null
            }
            Step::Status { code } => {
                self.status.set(Some(StatusCode::from_u16(*code)?));
                Json::Null
            }
            Step::Answer { code, headers } => {
                self.status.set(Some(StatusCode::from_u16(*code)?));
                self.more.replace(headers.clone());
                Json::Null
            }
            Step::Note { id, step } => {
                steps::note_begin(id);
                let result = self.attempt(step);
                steps::note_end(id, &result);
                result?
            }
            Step::Call {
                path,
                headers,
                steps,
            } => {
                let call = cx.subrequest("POST", path);
                let call =
                    (headers.iter()).fold(call, |call, (name, value)| call.header(name, value));
                steps::answered(&call.body(serde_json::to_vec(steps)?).send()?)
            }
            Step::Stream { sql, steps, drain } => {
                let mut rows = cx.db().rows::<Cells>(sql, ())?;
                let mut count = 0;
                for step in steps {
                    rows.next().transpose()?;
                    count += 1;
                    self.tell(step)?;
                }
                if *drain {
                    for row in rows {
                        row?;
                        count += 1;
                    }
                }
                count.into()
            }
            Step::Dropped { steps } => {
                let never = || Error::internal("it has no end");
                let dropped = cx.atomic(|_| self.run(steps).and(Err::<(), _>(never())));
                drop(dropped);
                Json::Null
            }
            Step::Leak { what } => {
                match what.as_str() {
                    "pin" => std::mem::forget(cx.db().pin()?),
                    "rows" => std::mem::forget(cx.db().rows::<Cells>(steps::SOME_ROWS, ())?),
                    // `begin`: in sync code a block ends with its closure, so it cannot be left open.
                    _ => {}
                }
                Json::Null
            }
            Step::Late { step, steps } => cx.atomic(|_| {
                self.run(steps)?;
                self.tell(step)
            })?,
            Step::Race { steps } => self.tell(steps.first().unwrap_or(&Step::Calls))?,
            _ => return Err(Error::internal(format!("no such step: {step:?}"))),
        })
    }
}
