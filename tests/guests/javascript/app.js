// A component of wasi:http 0.2 in JavaScript, as for a service worker, which knows nothing of Amphi.

let count = 0;

addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  count += 1;
  const url = new URL(request.url);
  switch (url.pathname.split("/").at(-1)) {
    case "hello":
      return new Response("Hello from wasi:http in JavaScript\n");
    case "echo":
      return new Response(request.body);
    case "headers":
      return new Response([...request.headers].map(([name, value]) => `${name}=${value}\n`).join(""));
    case "count":
      return new Response(`${count}\n`);
    case "stream":
      return new Response(lines());
    case "fetch":
      return await fetch(url.searchParams.get("url"));
    case "fail":
      throw new Error("this component fails on purpose");
    default:
      return new Response("no such path\n", { status: 404 });
  }
}

/** Lines, with some time before each. */
function lines() {
  const encoder = new TextEncoder();
  let line = 0;
  return new ReadableStream({
    async pull(controller) {
      line += 1;
      if (line > 3) {
        return controller.close();
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
      controller.enqueue(encoder.encode(`line ${line}\n`));
    },
  });
}
