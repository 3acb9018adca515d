"""A component of wasi:http 0.3 in Python, which knows nothing of Amphi. The tests build it with componentize-py, with the WIT of the
crate `wasip3`, as one would by hand, from this folder:

componentize-py -d WIT -w wasi:http/service componentize http_p3_app -o http.wasm
"""
import asyncio

import componentize_py_async_support
import wit_world
from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports import monotonic_clock
from wit_world.imports.wasi_http_types import Fields, Request, Response

COUNT = 0


class Handler(exports.Handler):
    async def handle(self, request: Request) -> Response:
        global COUNT
        COUNT += 1
        match request.get_path_with_query().rsplit("/")[-1]:
            case "hello":
                # Three waits at the same time.
                await asyncio.gather(*(monotonic_clock.wait_for(100_000_000) for _ in range(3)))
                return answer(b"Hello from wasi:http 0.3 in Python\n")
            case "echo":
                body, trailers = Request.consume_body(request, unit())
                return Response.new(Fields(), body, trailers)[0]
            case "headers":
                lines = [f"{name}={value.decode()}\n" for name, value in request.get_headers().copy_all()]
                return answer("".join(lines).encode())
            case "count":
                return answer(f"{COUNT}\n".encode())
            case "fail":
                raise ValueError("this component fails on purpose")
            case _:
                return answer(b"no such path\n", 404)


def answer(body: bytes, status: int = 200) -> Response:
    writer, reader = wit_world.byte_stream()
    componentize_py_async_support.spawn(write(writer, body))
    fields = Fields.from_list([("content-type", b"text/plain; charset=utf-8")])
    response = Response.new(fields, reader, trailers())[0]
    response.set_status_code(status)
    return response


async def write(writer, body: bytes) -> None:
    with writer:
        await writer.write_all(body)


def trailers():
    return wit_world.result_option_wasi_http_types_fields_wasi_http_types_error_code_future(lambda: Ok(None))[1]


def unit():
    return wit_world.result_unit_wasi_http_types_error_code_future(lambda: Ok(None))[1]
