"""Async views in Python. The tests build them with componentize-py, as one would by hand, from this folder:

componentize-py -d ../../../guest-sdk/wit -w async-views componentize async_app -o async.wasm

The module needs `ungranted_imports = true` in amphi.toml, since every import of the world is in the component.
"""
import asyncio

from shared import VIEWS, stream, text
from wit_world import WitWorld
from wit_world.imports import body_writer_async, context, database_async, timer
from wit_world.imports.database_types import Value_Text
from wit_world.imports.types import Request, Response

# Each call has a `WitWorld` of its own: what `produce` needs of `handle` is kept here.
STREAMED = {}


class WitWorld(WitWorld):
    def describe(self):
        return VIEWS

    async def handle(self, view: int, request: Request) -> Response:
        params = dict(request.params)
        match VIEWS[view].name:
            case "hello":
                # Three waits at the same time.
                await asyncio.gather(*(timer.sleep(100) for _ in range(3)))
                return text(f"Hello {params['name']} from async Python, {context.route()}\n")
            case "insert":
                tag = params["tag"]
                await database_async.execute("default", "insert into rows (tag) values (?)", [Value_Text(tag)])
                table = await database_async.query("default", "select count(*) from rows", [])
                # The transaction is rolled back with the status.
                return text(f"{table.rows[0][0].value} rows\n", 500 if tag == "undone" else 200)
            case "lines":
                STREAMED["lines"] = int(params["count"])
                return stream()
            case _:
                raise ValueError("this view fails on purpose")

    async def produce(self):
        for line in range(STREAMED.pop("lines")):
            await body_writer_async.write(f"line {line}\n".encode())
