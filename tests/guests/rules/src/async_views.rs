//! The async functions.

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::rc::Rc;
use std::task::Poll;

use amphi_sdk::asynch::Next;
use amphi_sdk::prelude::*;
use futures::future::{Either, LocalBoxFuture, select, select_all};
use serde_json::Value as Json;

use crate::steps::{self, Cells, Step, at_once, is_final, told};

/// A guest function while it does its steps.
struct Part<'a> {
    cx: &'a asynch::Context,
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
#[view(post, "/async/run", atomic = false)]
pub async fn run(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

/// Does the steps in its body, in a transaction.
#[view(post, "/async/run/atomic", atomic)]
pub async fn run_atomic(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

#[view(post, "/async/read", atomic = false, read_only)]
pub async fn read(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

#[view(post, "/async/read/atomic", atomic, read_only)]
pub async fn read_atomic(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

#[view(post, "/async/limited", atomic, cpu_ms = 10)]
pub async fn limited(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

#[view(post, "/async/brief", atomic, cpu_ms = 100, timeout_ms = 250)]
pub async fn brief(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

#[view(post, "/async/serializable", atomic, isolation = "serializable")]
pub async fn serializable(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

#[view(post, "/async/repeatable", atomic, isolation = "repeatable-read")]
pub async fn repeatable(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

#[view(
    post,
    "/async/retried",
    atomic,
    isolation = "serializable",
    retries = 10
)]
pub async fn retried(cx: &Context, request: Request) -> Result<Response> {
    view(cx, request).await
}

#[middleware]
pub async fn first(cx: &Context, request: Request, next: Next) -> Result<Response> {
    around(cx, request, next, "async-first").await
}

#[middleware]
pub async fn second(cx: &Context, request: Request, next: Next) -> Result<Response> {
    around(cx, request, next, "async-second").await
}

#[middleware]
pub async fn third(cx: &Context, request: Request, next: Next) -> Result<Response> {
    around(cx, request, next, "async-third").await
}

/// Does the steps in the event's payload, and writes what they tell into the log.
#[subscriber("orders.*")]
pub async fn heard(cx: &Context, event: Event) -> Result<()> {
    let part = Part::new(cx, Headers::new(), None);
    let told = part.run(&steps::parse(&event.payload)?).await?;
    log::info!("heard", topic = event.topic, told = Json::from(told));
    Ok(())
}

async fn view(cx: &asynch::Context, request: Request) -> Result<Response> {
    let part = Part::new(cx, request.headers.clone(), None);
    let told = part.run(&steps::parse(request.body())?).await?;
    let mut response = steps::answer(part.status.get().unwrap_or(StatusCode::OK), &told)?;
    for (name, value) in part.more.take() {
        response.headers.append(name, value);
    }
    Ok(response)
}

async fn around(
    cx: &asynch::Context,
    mut request: Request,
    next: Next,
    name: &str,
) -> Result<Response> {
    let steps = steps::of_middleware(&request, name)?;
    request.headers.append("x-seen", name);
    let part = Part::new(cx, request.headers.clone(), Some((request, next)));
    let told = part.run(&steps).await?;
    steps::passed_on(part.response.take(), part.status.get(), name, &told)
}

impl<'a> Part<'a> {
    fn new(cx: &'a asynch::Context, headers: Headers, rest: Option<(Request, Next)>) -> Part<'a> {
        Part {
            cx,
            headers,
            rest: RefCell::new(rest),
            response: RefCell::new(None),
            status: Cell::new(None),
            more: RefCell::default(),
        }
    }

    fn run<'s>(&'s self, steps: &'s [Step]) -> LocalBoxFuture<'s, Result<Vec<Json>>> {
        Box::pin(async move {
            let mut all = Vec::new();
            for step in steps {
                all.push(self.tell(step).await?);
            }
            Ok(all)
        })
    }

    async fn tell(&self, step: &Step) -> Result<Json> {
        let result = self.attempt(step).await;
        if is_final(step) {
            result
        } else {
            Ok(told(result))
        }
    }

    async fn attempt(&self, step: &Step) -> Result<Json> {
        let cx = self.cx;
        if let Some(result) = at_once(cx, &self.headers, step) {
            return result;
        }
        Ok(match step {
            Step::Execute { sql, params } => {
                cx.db().execute(sql, steps::values(params)?).await?.into()
            }
            Step::Query { sql, params } => {
                let rows: Vec<Cells> = cx.db().query(sql, steps::values(params)?).await?;
                rows.into_iter().map(|row| row.0).collect()
            }
            Step::Open { sql, rows } => {
                let mut count = 0;
                let mut all = cx.db().rows::<Cells>(sql, ()).await?;
                while count < *rows && all.next().await?.is_some() {
                    count += 1;
                }
                count.into()
            }
            Step::Increment { name } => {
                let sql = "select n from counters where name = $1";
                let n: i64 = cx.db().query_one(sql, (name,)).await?.unwrap_or(0);
                let sql = "update counters set n = $1 where name = $2";
                cx.db().execute(sql, (n + 1, name)).await?.into()
            }
            Step::Atomic { steps } => cx
                .atomic(async |_| self.run(steps).await)
                .await?
                .pop()
                .unwrap_or_default(),
            Step::Pinned { steps } => {
                let pinned = cx.db().pin().await?;
                let told = self.run(steps).await?;
                drop(pinned);
                told.into()
            }
            Step::Join { steps } => {
                let told = join_all(steps.iter().map(|step| self.tell(step))).await;
                told.into_iter().collect::<Result<Vec<Json>>>()?.into()
            }
            Step::Must { step } => Box::pin(self.attempt(step)).await?,
            Step::View { path, steps } => {
                let response = cx
                    .subrequest("POST", path)
                    .body(serde_json::to_vec(steps)?)
                    .send()
                    .await?;
                steps::answered(&response)
            }
            Step::Fetch { url } => cx.http().get(url).send().await?.status.as_u16().into(),
            Step::Next => {
                let rest = self.rest.take();
                let (request, next) = rest.ok_or_else(|| Error::internal("there is no rest"))?;
                let response = next.run(request).await?;
                let status = response.status.as_u16().into();
                self.response.replace(Some(response));
                status
            }
            Step::Nap { ms } => {
                cx.sleep(Duration::from_millis(*ms)).await;
                Json::Null
            }
            Step::Keep { name, value, times } => {
                let mut kept = true;
                for _ in 0..*times {
                    cx.set(name, value)?;
                    cx.sleep(Duration::ZERO).await;
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
                    Box::pin(self.attempt(step)).await?;
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
                let result = Box::pin(self.attempt(step)).await;
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
                steps::answered(&call.body(serde_json::to_vec(steps)?).send().await?)
            }
            Step::Stream { sql, steps, drain } => {
                let mut rows = cx.db().rows::<Cells>(sql, ()).await?;
                let mut count = 0;
                for step in steps {
                    rows.next().await?;
                    count += 1;
                    Box::pin(self.tell(step)).await?;
                }
                while *drain && rows.next().await?.is_some() {
                    count += 1;
                }
                count.into()
            }
            Step::Dropped { steps } => {
                drop(self.begun(steps).await?);
                Json::Null
            }
            Step::Leak { what } => {
                match what.as_str() {
                    "pin" => std::mem::forget(cx.db().pin().await?),
                    "rows" => std::mem::forget(cx.db().rows::<Cells>(steps::SOME_ROWS, ()).await?),
                    _ => std::mem::forget(self.begun(&[]).await?),
                }
                Json::Null
            }
            Step::Late { step, steps } => {
                let soon = Box::pin(cx.sleep(Duration::from_millis(20)));
                match select(Box::pin(self.tell(step)), soon).await {
                    Either::Left((told, _)) => told?,
                    Either::Right(((), late)) => {
                        cx.atomic(async |_| {
                            self.run(steps).await?;
                            late.await
                        })
                        .await?
                    }
                }
            }
            Step::Race { steps } => {
                let all = steps.iter().map(|step| Box::pin(self.tell(step)));
                let (first, at, _) = select_all(all).await;
                Json::from(vec![at.into(), first?])
            }
            _ => return Err(Error::internal(format!("no such step: {step:?}"))),
        })
    }

    /// Begins an atomic block and does the steps in it. The returned future never ends: dropping it ends the block.
    async fn begun<'s>(&'s self, steps: &'s [Step]) -> Result<LocalBoxFuture<'s, Result<()>>> {
        let done = Rc::new(Cell::new(false));
        let here = Rc::clone(&done);
        let mut block: LocalBoxFuture<'s, Result<()>> = Box::pin(async move {
            let work = async |_: &asynch::Transaction<'_>| {
                self.run(steps).await?;
                here.set(true);
                pending().await
            };
            self.cx.atomic(work).await
        });
        poll_fn(|cx| match block.as_mut().poll(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending if done.get() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        Ok(block)
    }
}
