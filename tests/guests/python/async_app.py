"""An async view in Python: three waits at once. Build it with componentize-py 0.25.1, from this folder:

componentize-py -d ../../../guest-sdk/wit -w async-views componentize async_app -o async.wasm

Its module needs `ungranted_imports = true` in amphi.toml, since every import of the world is in the component.
"""
import asyncio

from wit_world import WitWorld
from wit_world.imports import timer
from wit_world.imports.types import Request, Response, Route, ViewInfo, ViewKind_Route


class WitWorld(WitWorld):
    def describe(self):
        hello = ViewInfo(
            id=0,
            name="hello",
            kind=ViewKind_Route(Route("GET", "/hello/{name}")),
            atomic=None,
            read_only=False,
            isolation=None,
            retries=0,
            cpu_ms=None,
            timeout_ms=None,
            middleware=[],
        )
        return [hello]

    async def handle(self, view: int, request: Request) -> Response:
        await asyncio.gather(*(timer.sleep(100) for _ in range(3)))
        text = f"Hello {dict(request.params)['name']} from async Python\n"
        return Response(200, [("content-type", "text/plain; charset=utf-8")], text.encode())
