// The page of the to-do app: shows what the server tells, sends what a person does.
//
// All that comes from anybody is put in as text, never as markup.

import { Note } from "./note.js";

const $ = (id) => document.getElementById(id);
const STATES = { pending: "waiting", sent: "sending", synced: "synced", blocked: "blocked", rejected: "refused" };
const RECONNECT_MS = [200, 2000];

// What is known, as it was last told.
let lists = [];
let wanted = null; // the list that was just made here: shown as soon as it is there
let shown = localStorage.getItem("list");
let status = { state: "connecting", queued: 0 };
let told = performance.now();
let note = null; // { id, view: Note } of the todo whose note is open

// The connection to the server.

let socket = null;
let wait = RECONNECT_MS[0];

function connect() {
  const address = new URL("live", location.href);
  address.protocol = "ws:";
  socket = new WebSocket(address);
  socket.onopen = () => {
    wait = RECONNECT_MS[0];
    if (shown) send({ do: "show", list: shown });
    if (note) send({ do: "open_note", todo: note.id });
  };
  socket.onmessage = (event) => {
    const { kind, value, ...more } = JSON.parse(event.data);
    HEARD[kind]?.(value, more);
  };
  socket.onclose = () => {
    setStatus({ ...status, state: "closed" });
    setTimeout(connect, wait);
    wait = Math.min(wait * 2, RECONNECT_MS[1]);
  };
}

// False while there is nobody to tell: what was typed stays where it is.
function send(message) {
  showProblem("");
  if (socket.readyState !== WebSocket.OPEN) return false;
  socket.send(JSON.stringify(message));
  return true;
}

const HEARD = {
  device(name) {
    $("device").textContent = name;
    document.title = `${name}: todos`;
  },
  status: setStatus,
  lists: setLists,
  todos(todos, { list }) {
    if (list === shown) setTodos(todos);
  },
  refusals: setRefusals,
  note(value, { todo }) {
    if (note?.id === todo) note.view.open(value);
  },
  note_changed(news, { todo }) {
    if (note?.id === todo) note.view.take(news);
  },
  error: showProblem,
};

// Small things.

function make(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

function setState(element, state) {
  element.dataset.state = state;
  element.textContent = STATES[state] ?? state;
}

const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

function showProblem(words) {
  $("problem").textContent = words;
  $("problem").hidden = !words;
}

// Make the children of an element those of `items`, reusing what is there: the element that has the
// focus is moved only when it has to be.
function fill(parent, items, template, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.id, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const id = String(item.id);
    const element = old.get(id) ?? make(template);
    const isNew = !old.delete(id);
    element.dataset.id = id;
    if (element === place) place = place.nextElementSibling;
    else parent.insertBefore(element, place);
    update(element, item, isNew);
  }
  old.forEach((element) => element.remove());
}

// Let a text be edited in the place of `element`: Enter and leaving keep it, Escape does not.
function editInPlace(element, label, max, keep) {
  const input = document.createElement("input");
  // What somebody else made of it meanwhile is not written over by one who changed nothing.
  const before = element.textContent;
  input.value = before;
  input.maxLength = max;
  input.className = "inline";
  input.setAttribute("aria-label", label);
  let ended = false;
  const end = (kept) => {
    if (ended) return;
    ended = true;
    const wanted = input.value.trim();
    const focused = document.activeElement === input;
    input.replaceWith(element);
    if (focused) element.focus();
    if (kept && wanted !== before) keep(wanted);
  };
  input.addEventListener("blur", () => end(true));
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
    // The key is not also one for the button that gets the focus back.
    event.preventDefault();
    end(event.key === "Enter");
  });
  element.replaceWith(input);
  input.focus();
  input.select();
}

function confirmed(question) {
  const dialog = $("confirm");
  $("confirm-text").textContent = question;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

// How sync stands.

function setStatus(value) {
  status = value;
  told = performance.now();
  $("online").checked = status.state !== "disconnected";
  $("online").disabled = status.state === "closed";
  document.body.dataset.state = status.state;
  $("stopped").hidden = status.state !== "stopped";
  $("stopped-why").textContent = status.reason ?? "";
  showStatus();
}

function showStatus() {
  const words = statusWords();
  $("status").title = status.state === "live" ? "" : (status.reason ?? "");
  if ($("status-text").textContent !== words) $("status-text").textContent = words;
}

function statusWords() {
  const { state, queued, percent, reason } = status;
  const waiting = queued ? `${counted(queued, "change")} waiting` : "";
  if (state === "closed") return "The app is not running, trying again";
  if (state === "disconnected") return queued ? `Offline, ${waiting}` : "Offline";
  if (state === "live") return queued ? `Sending ${counted(queued, "change")}` : "Up to date";
  if (state === "loading") return percent === null ? "Loading" : `Loading ${Math.round(percent)} %`;
  if (state === "stopped") return "Sync has stopped";
  if (state === "connecting" && !reason) return "Connecting";
  const left = Math.ceil((status.retry_in ?? 0) - (performance.now() - told) / 1000);
  const next = left > 0 ? `next try in ${left} s` : "trying again";
  return ["No relay", next, waiting].filter(Boolean).join(", ");
}

setInterval(showStatus, 500);
$("online").addEventListener("change", (event) => {
  send({ do: "switch", online: event.target.checked });
});
$("reload").addEventListener("click", () => send({ do: "reload" }));

// Lists.

// While it is edited it is not in the page.
const listName = document.getElementById("list-name");

function setLists(value) {
  lists = value;
  if (lists.some((list) => list.id === wanted)) {
    [shown, wanted] = [wanted, null];
    return show(shown);
  }
  if (!lists.some((list) => list.id === shown)) show(lists[0]?.id ?? null);
  fill($("lists"), lists, "list-template", (element, list) => {
    const button = element.firstElementChild;
    element.querySelector(".name").textContent = list.name;
    setState(element.querySelector(".state"), list.state);
    element.querySelector(".tally").textContent = `${list.done}/${list.total}`;
    button.setAttribute("aria-label", `${list.name}, ${list.done} of ${list.total} done`);
    if (list.id === shown) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    button.onclick = () => show(list.id);
  });
  const list = lists.find((each) => each.id === shown);
  $("list").hidden = !list;
  $("no-list").hidden = Boolean(list);
  if (!list) return;
  listName.textContent = list.name;
  $("count").textContent = list.total ? `${list.done} of ${list.total} done` : "";
  $("delete-all").hidden = !list.total;
  $("empty").hidden = list.total > 0;
}

function show(id) {
  shown = id;
  closeNote();
  $("todos").replaceChildren();
  if (id === null) return;
  localStorage.setItem("list", id);
  send({ do: "show", list: id });
  setLists(lists);
}

const current = () => lists.find((list) => list.id === shown);

$("add-list").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("new-list").value.trim();
  const id = crypto.randomUUID();
  if (!name) return $("new-list").focus();
  if (!send({ do: "add_list", list: id, name })) return;
  $("new-list").value = "";
  wanted = id;
});
$("rename-list").addEventListener("click", () => {
  const { id } = current();
  editInPlace(listName, "Name of the list", 80, (name) => send({ do: "rename_list", list: id, name }));
});
$("delete-list").addEventListener("click", async () => {
  const { id, name, total } = current();
  const all = total ? ` and its ${counted(total, "todo")}` : "";
  if (await confirmed(`Delete the list “${name}”${all}, on all devices?`)) send({ do: "delete_list", list: id });
});

// Todos.

function setTodos(todos) {
  if (note && !todos.some((todo) => todo.id === note.id)) closeNote();
  fill($("todos"), todos, "todo-template", setTodo);
}

function setTodo(element, todo, isNew) {
  const part = (name) => element.querySelector(name);
  // While it is edited the text is not in the page; it is set all the same, for when it is back.
  element.words ??= part(".text");
  element.words.textContent = todo.text;
  element.classList.toggle("is-done", Boolean(todo.done));
  part(".done").checked = Boolean(todo.done);
  part(".done").setAttribute("aria-label", `Done: ${todo.text}`);
  setState(part(".state"), todo.state);
  part(".vote span").textContent = todo.votes;
  part(".vote").setAttribute("aria-label", `Vote for ${todo.text}, ${counted(todo.votes, "vote")}`);
  part(".vote").classList.toggle("none", todo.votes === 0);
  part(".open").setAttribute("aria-label", `Note of ${todo.text}`);
  part(".remove").setAttribute("aria-label", `Delete ${todo.text}`);
  part(".preview").textContent = todo.note;
  part(".preview").hidden = !todo.note || note?.id === todo.id;
  if (!isNew) return;
  const id = todo.id;
  part(".done").onchange = (event) => send({ do: "check", todo: id, done: event.target.checked });
  part(".vote").onclick = () => send({ do: "vote", todo: id });
  part(".remove").onclick = () => send({ do: "remove", todo: id });
  part(".open").onclick = () => (note?.id === id ? closeNote() : openNote(element, id));
  part(".preview").onclick = () => openNote(element, id);
  part(".text").onclick = () => {
    editInPlace(element.words, "Text of the todo", 500, (text) => send({ do: "edit", todo: id, text }));
  };
}

$("add").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("new-todo").value;
  if (send({ do: "add", list: shown, text }) && text.trim()) $("new-todo").value = "";
});
$("delete-all").addEventListener("click", async () => {
  const { id, name, total } = current();
  const question = `Delete ${total === 1 ? "the one todo" : `all ${total} todos`} of “${name}”, on all devices?`;
  if (await confirmed(question)) send({ do: "remove_all", list: id });
});

// The note that is open.

function openNote(element, id) {
  closeNote();
  const panel = make("note-template");
  const area = panel.querySelector("textarea");
  area.setAttribute("aria-label", `Note of ${element.words.textContent}`);
  element.append(panel);
  element.querySelector(".open").setAttribute("aria-expanded", "true");
  element.querySelector(".preview").hidden = true;
  note = { id, panel, element, view: new Note(area, send) };
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    closeNote();
    element.querySelector(".open").focus();
  });
  send({ do: "open_note", todo: id });
}

function closeNote() {
  if (!note) return;
  const { element, panel } = note;
  note = null;
  panel.remove();
  element.querySelector(".open").setAttribute("aria-expanded", "false");
  const preview = element.querySelector(".preview");
  preview.hidden = !preview.textContent;
  send({ do: "close_note" });
}

// What was refused.

function setRefusals(refusals) {
  $("refusals").hidden = refusals.length === 0;
  $("refusals-title").textContent = `${counted(refusals.length, "change")} could not be kept`;
  fill($("refusals").querySelector("ul"), refusals, "refusal-template", (element, refusal) => {
    element.querySelector(".what").textContent = refusal.what;
    element.querySelector(".why").textContent = refusal.why;
    element.querySelector(".why").title = refusal.said;
    element.querySelector(".retry").textContent = refusal.again;
    element.querySelector(".retry").hidden = !refusal.again;
    element.querySelector(".retry").onclick = () => send({ do: "retry", refusal: refusal.id });
    element.querySelector(".dismiss").onclick = () => send({ do: "dismiss", refusal: refusal.id });
  });
}

connect();
