//! A function that keeps the conversation of its socket and does what its client says, below `/talk`.

use crate::{add, command};
use amphi_sdk::__private::bindings::amphi::view::conversation as raw;
use amphi_sdk::prelude::*;
use amphi_sdk::socket::Opening;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Instant;

/// The conversations of this instance so far.
static SERVED: AtomicU32 = AtomicU32::new(0);

/// Who opens the socket. Some are refused.
pub struct Name(String);

#[extractor]
async fn named(cx: &Context, opening: Opening) -> Result<Name> {
    if opening.query("refuse").is_some() {
        return Err(Error::forbidden("refused on purpose"));
    }
    if opening.query("panic").is_some() {
        panic!("a panic at the opening, on purpose");
    }
    let name = opening.query("name").unwrap_or_else(|| "nobody".into());
    add(cx, &format!("opened {name}")).await?;
    cx.set("name", &name)?;
    opening.choose_subprotocol(&["talk.v2", "talk.v1"]);
    if opening.query("late").is_some() {
        return Err(Error::conflict("refused after a statement"));
    }
    Ok(Name(name))
}

#[socket("/talk/{room}", atomic, cpu_ms = 300, timeout_ms = 1500)]
pub async fn talk(
    cx: &Context,
    Path(room): Path<String>,
    Name(name): Name,
    mut socket: Socket,
) -> Result<()> {
    let group = format!("room.{room}");
    socket.join(&group)?;
    socket.send(format!("welcome {name}")).await?;
    let mut talk = Talk {
        cx,
        name,
        group,
        count: 0,
        served: SERVED.fetch_add(1, Relaxed) + 1,
        hoard: Vec::new(),
    };
    while let Some(event) = socket.receive().await? {
        match event {
            Received::Message(Message::Text(text)) => {
                talk.count += 1;
                if !talk.obey(&mut socket, &text).await? {
                    return Ok(());
                }
            }
            Received::Message(bytes) => socket.send(bytes).await?,
            Received::Notice(notice) => {
                let text = String::from_utf8_lossy(&notice.payload).into_owned();
                socket
                    .send(format!("notice in {}: {text}", notice.group))
                    .await?;
            }
        }
    }
    let code = socket.closed().map_or(0, |closed| closed.code);
    add(cx, &format!("closed {} {code}", talk.name)).await?;
    cx.channels()
        .send(&talk.group, format!("{} has left", talk.name))
}

/// What a conversation remembers.
struct Talk<'a> {
    cx: &'a asynch::Context,
    name: String,
    group: String,
    /// The messages so far.
    count: u32,
    /// Which conversation of its instance it is.
    served: u32,
    /// Memory that is not given back.
    hoard: Vec<Vec<u8>>,
}

impl Talk<'_> {
    /// Does what the client says. Returns whether the conversation goes on.
    async fn obey(&mut self, socket: &mut Socket, text: &str) -> Result<bool> {
        let cx = self.cx;
        let (what, with) = command(text);
        let number = || with.parse::<u64>().unwrap_or(0);
        match what {
            "say" => {
                add(cx, with).await?;
                cx.channels()
                    .send(&self.group, format!("{}: {with}", self.name))?;
            }
            "served" => socket.send(format!("conversation {}", self.served)).await?,
            "get" => socket.send(cx.get(with).unwrap_or_default()).await?,
            // The time that is left outside of a transaction, and within one that has been open for a while.
            "remaining" => {
                let outside = cx.remaining().as_millis();
                let within = cx.atomic(async |_| {
                    add(cx, "remaining").await?;
                    cx.sleep(Duration::from_millis(300)).await;
                    Ok(cx.remaining().as_millis())
                });
                let within = within.await?;
                let after = cx.remaining().as_millis();
                socket.send(format!("{outside} {within} {after}")).await?;
            }
            "count" => socket.send(format!("{} so far", self.count)).await?,
            "keep" | "undo" => {
                let done = cx.atomic(async |_| {
                    add(cx, with).await?;
                    socket.send(format!("{what} {with}")).await?;
                    cx.channels().send(&self.group, format!("all: {with}"))?;
                    match what {
                        "keep" => Ok(()),
                        _ => Err(Error::conflict("undone on purpose")),
                    }
                });
                let done = done.await;
                socket.send(format!("{}", done.is_ok())).await?;
            }
            "inner" => {
                let refused = cx.atomic(async |_| match socket.receive().await {
                    Ok(_) => Ok(()),
                    Err(error) => Err(Error::conflict(error.to_string())),
                });
                let refused = refused.await.err().map(|error| error.message().to_owned());
                socket.send(refused.unwrap_or_default()).await?;
            }
            // A transaction that others have to wait for.
            "hold" => {
                cx.atomic(async |_| {
                    add(cx, "held").await?;
                    cx.sleep(Duration::from_millis(number())).await;
                    Ok(())
                })
                .await?;
                socket.send("held").await?;
            }
            // Much in one transaction after the other.
            "blocks" => {
                for _ in 0..number() {
                    cx.atomic(async |_| add(cx, "block").await).await?;
                }
                socket.send("blocks").await?;
            }
            "fail" => return Err(Error::internal("a failure on purpose")),
            "panic" => panic!("a panic on purpose"),
            "spin" => loop {
                std::hint::black_box(());
            },
            // Computes, and waits between.
            "nap" => loop {
                compute(20);
                cx.sleep(Duration::from_millis(1)).await;
            },
            // Computes for less than the budget.
            "work" => {
                compute(number());
                socket.send("worked").await?;
            }
            "hog" => loop {
                self.hoard.push(vec![1; 1 << 20]);
            },
            "end" => return Ok(false),
            "close" => socket.close(4000, with)?,
            "deaf" => {
                cx.sleep(Duration::from_millis(number())).await;
                // The connection may have ended, and yet there are messages.
                let _ = socket.send("awake").await;
            }
            "join" => socket.join(format!("room.{with}"))?,
            "leave" => socket.leave(format!("room.{with}"))?,
            "notify" => cx.channels().notify_bytes(&self.group, with.as_bytes())?,
            "id" => socket.send(socket.id()?).await?,
            "members" => {
                let members = cx.channels().members(&self.group)?;
                socket.send(format!("{} members", members.count)).await?;
            }
            // What waits while the client does not read.
            "flood" => {
                for number in 0..number() {
                    let text = format!("{number} {}", "x".repeat(60_000));
                    socket.send(text).await?;
                }
                socket.send("flooded").await?;
            }
            // More than a request may send, without an event between.
            "many" => {
                let mut sent = 0;
                while sent < number() {
                    match cx.channels().send(&self.group, "many") {
                        Ok(()) => sent += 1,
                        Err(_) => {
                            socket.send(format!("full after {sent}")).await?;
                            cx.sleep(Duration::from_millis(1100)).await;
                        }
                    }
                }
                socket.send("sent").await?;
            }
            // A clock of the function's own, which takes a tenth of a processor.
            "ticks" => {
                let mut ticks = 0;
                while ticks < number() {
                    match socket.receive_within(Duration::from_millis(90)).await? {
                        Some(_) => socket.send("heard").await?,
                        None if !socket.is_open() => return Ok(true),
                        None => {
                            compute(10);
                            ticks += 1;
                        }
                    }
                }
                socket.send(format!("{ticks} ticks")).await?;
            }
            "both" => {
                let (one, other) = join!(raw::receive(), raw::receive());
                for event in [one, other] {
                    if let Ok(raw::Event::Message(raw::Message::Text(text))) = event {
                        socket.send(format!("got {text}")).await?;
                    }
                }
            }
            // What a function does that does not want to end.
            "ignore" => {
                while socket.receive().await?.is_some() {}
                loop {
                    cx.sleep(Duration::from_millis(10)).await;
                }
            }
            "insist" => loop {
                // After the end, each call is an error at once.
                let _ = raw::receive().await;
            },
            "large" => {
                let sent = socket.send("x".repeat(number() as usize)).await;
                let sent = sent
                    .err()
                    .map(|error| error.detail().unwrap_or("?").to_owned());
                socket.send(sent.unwrap_or_else(|| "sent".into())).await?;
            }
            _ => socket.send(format!("echo {text}")).await?,
        }
        Ok(true)
    }
}

/// Computes for so many milliseconds.
fn compute(ms: u64) {
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(ms) {
        std::hint::black_box(());
    }
}
