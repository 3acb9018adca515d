// The messages of a page, each once, in the order of their ids. Transactions that run side by side may commit in another
// order, so a smaller id can come after a larger one.
const lines = document.getElementById("lines");

function add(line) {
  let before = null;
  for (let item = lines.lastElementChild; item; item = item.previousElementSibling) {
    const id = Number(item.dataset.id);
    if (id === line.id) return;
    if (id < line.id) break;
    before = item;
  }
  const item = document.createElement("li");
  item.dataset.id = line.id;
  item.appendChild(document.createElement("b")).textContent = line.name;
  const time = item.appendChild(document.createElement("time"));
  time.dateTime = line.written_at;
  time.textContent = line.written_at.slice(11, 16);
  item.appendChild(document.createElement("p")).textContent = line.text;
  lines.insertBefore(item, before);
  lines.scrollTop = lines.scrollHeight;
}

lines.scrollTop = lines.scrollHeight;
