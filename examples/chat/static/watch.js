// A room to watch: the browser connects again by itself, and goes on where it was.
const state = document.getElementById("state");
const events = new EventSource(document.querySelector("main").dataset.events);

events.onopen = () => { state.textContent = "connected"; };
events.onerror = () => { state.textContent = "connecting again"; };
// More was sent while the browser was away than the server keeps.
events.addEventListener("gap", () => location.reload());
events.onmessage = ({ data }) => {
  const told = JSON.parse(data);
  if (told.kind === "line") add(told);
};
