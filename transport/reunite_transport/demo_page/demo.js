// The page around the three devices: frames their pages, and shows the relay between them.

const $ = (id) => document.getElementById(id);
const WORDS = { disconnected: "offline", offline: "no relay", stopped: "stopped", live: "live" };
const BRIEFLY_MS = 700;

let commits = null;
let chosen = 0;
let socket = null;

function connect() {
  const address = new URL("live", location.href);
  address.protocol = "ws:";
  socket = new WebSocket(address);
  socket.onmessage = (event) => show(JSON.parse(event.data));
  socket.onclose = () => {
    $("caption").textContent = "The demo has ended.";
    $("drift").disabled = $("backend").disabled = true;
    document.body.classList.add("ended");
  };
}

function show({ devices, relay, caption, playing }) {
  if ($("devices").childElementCount === 0) devices.forEach(frame);
  devices.forEach((device, place) => {
    const isLive = device.state === "live";
    $("devices").children[place].dataset.state = device.state;
    const tab = $("tabs").children[place];
    tab.dataset.state = device.state;
    tab.querySelector(".badge").textContent = device.queued ? String(device.queued) : "";
    tab.title = isLive ? "live" : (WORDS[device.state] ?? device.state);
  });
  $("commits").textContent = relay.commits === 1 ? "1 commit" : `${relay.commits} commits`;
  const lists = relay.lists === 1 ? "1 list" : `${relay.lists} lists`;
  const todos = relay.todos === 1 ? "1 todo" : `${relay.todos} todos`;
  $("rows").textContent = `${lists}, ${todos}`;
  if (caption) $("caption").textContent = caption;
  $("drift").disabled = playing;
  $("backend").disabled = false;
  if (commits !== null && relay.commits !== commits) pulse();
  commits = relay.commits;
}

// Something was committed: it went out to whoever is online.
function pulse() {
  document.body.classList.remove("pulse");
  void document.body.offsetWidth;
  document.body.classList.add("pulse");
  setTimeout(() => document.body.classList.remove("pulse"), BRIEFLY_MS);
}

function frame({ name, url }, place) {
  const panel = $("device").content.firstElementChild.cloneNode(true);
  const tab = $("tab").content.firstElementChild.cloneNode(true);
  panel.id = `device-${place}`;
  panel.setAttribute("aria-label", name);
  panel.querySelector("iframe").src = url;
  panel.querySelector("iframe").title = name;
  tab.querySelector(".name").textContent = name;
  tab.setAttribute("aria-controls", panel.id);
  tab.addEventListener("click", () => choose(place));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    choose((place + step + $("tabs").childElementCount) % $("tabs").childElementCount);
    $("tabs").children[chosen].focus();
  });
  $("devices").append(panel);
  $("tabs").append(tab);
  choose(chosen);
}

// Which one is shown where there is room for one only.
function choose(place) {
  chosen = place;
  [...$("tabs").children].forEach((tab, each) => {
    tab.setAttribute("aria-selected", each === place);
    tab.tabIndex = each === place ? 0 : -1;
    $("devices").children[each]?.classList.toggle("chosen", each === place);
  });
}

$("drift").addEventListener("click", () => socket.send("drift"));
$("backend").addEventListener("click", () => socket.send("backend"));
connect();
