// A room: one web socket, and one request when somebody comes or leaves.
const main = document.querySelector("main");
const typing = document.getElementById("typing");
const state = document.getElementById("state");
const text = document.getElementById("text");
let socket, wait = 500, typingEnds, saidTyping = 0, asked;

async function showMembers() {
  const response = await fetch(main.dataset.members);
  if (!response.ok) return;
  document.getElementById("members").textContent = (await response.json()).join(", ");
}

// Many come and leave at once when a server ends.
function askForMembers() {
  clearTimeout(asked);
  asked = setTimeout(showMembers, 100);
}

function connect() {
  const url = new URL(main.dataset.socket, location);
  url.protocol = url.protocol.replace("http", "ws");
  // A few more than those that are missing: see `lines.js`.
  url.searchParams.set("after", Number(lines.lastElementChild?.dataset.id ?? 0) - 20);
  socket = new WebSocket(url);
  socket.onopen = () => { state.textContent = "connected"; wait = 500; };
  socket.onmessage = ({ data }) => {
    const told = JSON.parse(data);
    if (told.kind === "line") { add(told); typing.textContent = ""; }
    if (told.kind === "members") askForMembers();
    if (told.kind === "typing") {
      typing.textContent = `${told.name} is typing …`;
      clearTimeout(typingEnds);
      typingEnds = setTimeout(() => { typing.textContent = ""; }, 3000);
    }
  };
  socket.onclose = ({ reason }) => {
    state.textContent = reason || "connecting again";
    setTimeout(connect, wait);
    wait = Math.min(wait * 2, 10000);
  };
}

text.addEventListener("input", () => {
  if (Date.now() - saidTyping < 2000 || socket.readyState !== WebSocket.OPEN) return;
  saidTyping = Date.now();
  socket.send(JSON.stringify({ kind: "typing" }));
});

document.getElementById("say").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!text.value.trim() || socket.readyState !== WebSocket.OPEN) return;
  socket.send(JSON.stringify({ kind: "line", text: text.value }));
  text.value = "";
  saidTyping = 0;
});

// Browsers keep pages for the back button. One that is not shown is not in the room; shown again, it connects again.
addEventListener("pagehide", () => socket.close());

// A server that was killed tells nobody that its members are gone.
setInterval(showMembers, 2000);
connect();
