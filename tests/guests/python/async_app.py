"""An async view in Python: three waits at once. Build it with componentize-py 0.25.1, from this folder:

componentize-py -d ../../../guest-sdk/wit -w async-views componentize async_app -o async.wasm
"""
import asyncio

from wit_world import WitWorld
from wit_world.imports import timer
from wit_world.imports.types import Request, Response, ViewInfo


class WitWorld(WitWorld):
    def describe(self):
        return [ViewInfo(0, "hello", "GET", "/hello/{name}", None, None, None)]

    async def handle(self, view: int, request: Request) -> Response:
        await asyncio.gather(*(timer.sleep(100) for _ in range(3)))
        text = f"Hello {dict(request.params)['name']} from async Python\n"
        return Response(200, [("content-type", "text/plain; charset=utf-8")], text.encode())
