"use strict";
// The view of the tables: sorting, filtering, states, columns, its address and its CSV. Without this script they only stand still.
const $ = (id) => document.getElementById(id), all = (where, what) => [...where.querySelectorAll(what)];
const WINDOW = 100; // rows of a table that are in the document until its reader scrolls on or asks for all
const ENDS = { final: "", init: "_init", change: "_emergence" };
const SHOWN = { final: "Trained", init: "Untrained", change: "Trained minus untrained" };
const BELOW = { init: ["trained"], change: ["trained", "untrained"] };
const FIELDS = { floor: "_floor", null: "_null", trained: "", untrained: "_init" };
let data; // column of leaderboard.csv -> its values, in the order of the page's rows
let state = "final", picked = {}, count = 0;

const boards = all(document, ".board").map((table) => {
  const rows = [...table.tBodies[0].rows].map((row) => ({ row, at: count++, drawn: table.matches(".lean") ? "" : "final", kept: true }));
  const heads = [...table.tHead.rows[0].cells].map((cell, place) => {
    const legend = cell.querySelector(".legend");
    return { cell, place, key: cell.dataset.key, theme: cell.dataset.theme, better: cell.dataset.better, legend,
      words: legend && legend.textContent ? legend.textContent.split(" · ") : [],
      metric: "metric" in cell.dataset, bounded: "bounded" in cell.dataset };
  });
  return { table, rows, heads, order: [], limit: WINDOW, more: table.closest(".block").querySelector(".more") };
});

// Three digits, as the page's rows have them: ties go to the even digit there, which toFixed does not do.
function fixed(size, digits) {
  const scaled = size * 10 ** digits, tie = scaled % 1 === 0.5 && Number.isInteger(size * 2 ** (digits + 1));
  return (tie ? 2 * Math.round(scaled / 2) / 10 ** digits : size).toFixed(digits);
}
function number(value) {
  if (value === null || value === undefined) return "—";
  const size = Math.abs(value), whole = size >= 1 && size < 1000 && Number.isInteger(value);
  const text = size === 0 || whole ? size.toFixed(0) : size < 5e-4 ? size.toExponential(0).replace("-", "−")
    : size < 100 ? fixed(size, size < 1 ? 3 : size < 10 ? 2 : 1) : fixed(size, 0).replace(/\B(?=(\d{3})+$)/g, ",");
  return (value < 0 ? "−" : "") + text;
}

const values = (name) => data[name] ?? [];
const large = (head) => head.metric ? head.key + ENDS[state] : head.key;
const words = (head) => state === "final" ? head.words : BELOW[state];
const range = (name, at) => [values(`${name}_lo`)[at] ?? null, values(`${name}_hi`)[at] ?? null];
const interval = (name, at) => range(name, at).includes(null) ? "no interval" : `[${range(name, at).map(number).join(", ")}]`;

function lines(head, at) {
  const name = large(head), value = values(name)[at] ?? null, beside = words(head).map((word) => values(head.key + FIELDS[word])[at] ?? null);
  if (value === null && beside.every((other) => other === null)) return "—";
  const found = [number(value), interval(name, at)];
  if (beside.length) found.push(beside.map(number).join(" · "));
  const size = values("aligned_size")[at] ?? null;
  if (head.key === "lattice_error_aligned" && size !== null && size !== values("image_size")[at]) found.push(`at ${number(size)} px`);
  return found.join("\n");
}
function draw(board, entry) {
  if (entry.drawn === state) return;
  board.heads.filter((head) => head.metric).forEach((head) => (entry.row.cells[head.place].textContent = lines(head, entry.at)));
  entry.drawn = state;
}

// Rows without a value stay last, whichever way round; equal ones keep the board's order.
const collator = new Intl.Collator("en", { numeric: true });
function sort(board) {
  const keys = board.order.map(({ head, up }) => ({ of: values(large(head)), sign: up ? 1 : -1 }));
  board.rows.sort((a, b) => {
    for (const { of, sign } of keys) {
      const x = of[a.at] ?? null, y = of[b.at] ?? null;
      if (x === y) continue;
      if (x === null || y === null) return x === null ? 1 : -1;
      const order = typeof x === "string" ? collator.compare(x, y) : x - y;
      if (order) return sign * order;
    }
    return a.at - b.at;
  });
  board.heads.forEach(({ cell }) => { cell.removeAttribute("aria-sort"); delete cell.dataset.sort; delete cell.dataset.place; });
  board.order.forEach(({ head, up }, place) => {
    head.cell.dataset.sort = up ? "ascending" : "descending";
    if (board.order.length > 1) head.cell.dataset.place = place + 1;
    if (place === 0) head.cell.setAttribute("aria-sort", head.cell.dataset.sort); // one column may have it
  });
  board.table.classList.toggle("sorted", board.order.length > 0);
}
// Best first, then the other way round, then not at all; with shift, after the columns sorted by already.
function press(board, head, add) {
  const best = head.better !== "↑", before = board.order.find((one) => one.head === head);
  const rest = add ? board.order.filter((one) => one.head !== head) : [];
  if (!before) board.order = [...rest, { head, up: best }];
  else if (before.up === best) board.order = add ? board.order.map((one) => one === before ? { head, up: !best } : one) : [{ head, up: !best }];
  else board.order = rest;
  board.limit = WINDOW;
  sort(board);
  show();
}

// The rows that the filters leave, as far as they are laid out, and the columns that have a number among them.
const chosen = ({ key, theme }) => $(`theme-${theme}`).checked && ($(`col-${key}`).checked || !!$(`all-${theme}`)?.checked);
function show() {
  let shown = 0, rules = "";
  boards.forEach((board) => {
    const kept = board.rows.filter((entry) => entry.kept), laid = kept.slice(0, board.limit);
    laid.forEach((entry) => draw(board, entry));
    board.table.tBodies[0].replaceChildren(...laid.map(({ row }) => row));
    board.table.closest(".block").hidden = kept.length === 0;
    const known = (head) => (head.metric ? ["", "_init"] : [""]).some((end) => kept.some(({ at }) => (values(head.key + end)[at] ?? null) !== null));
    board.heads.forEach((head) => (head.open = kept.length > 0 && (!head.theme || (chosen(head) && known(head)))));
    rules += board.heads.filter(({ open }) => !open).map(({ place }) =>
      `#${board.table.id} :is(td, th):nth-child(${place + 1}) { display: none }`).join("\n");
    board.more.hidden = kept.length <= board.limit;
    board.more.firstChild.textContent = `The first ${laid.length} of ${kept.length.toLocaleString("en")} rows; scroll for more.`;
    shown += kept.length;
  });
  $("shown").textContent = rules;
  const sorted = boards.map(({ order }) => order.map(({ head, up }) => `${title(head)} (${up ? "ascending" : "descending"})`).join(", then "));
  $("status").textContent = [`showing ${shown.toLocaleString("en")} of ${count.toLocaleString("en")} rows`,
    ...sorted.filter(Boolean).map((text) => `sorted by ${text}`)].join(", ");
  address();
}
const title = (head) => head.legend || head.bounded ? head.cell.title.split(" (")[0] : head.cell.querySelector("button").textContent;

function filter() {
  const boxes = all($("filters"), ".facet input:checked"), asked = $("search").value.toLowerCase().split(/\s+/);
  picked = {};
  boxes.forEach((box) => (picked[box.closest(".facet").dataset.facet] ??= []).push(box.value));
  all($("filters"), ".facet").forEach((facet) => (facet.querySelector(".picked").textContent = (picked[facet.dataset.facet] ?? []).join(", ")));
  const facets = Object.entries(picked).map(([key, wanted]) => [values(key), new Set(wanted)]);
  boards.forEach((board) => board.rows.forEach((entry) => {
    entry.kept = facets.every(([of, wanted]) => wanted.has(of[entry.at] ?? "unknown")) && asked.every((word) => entry.text.includes(word));
  }));
}
function restate() {
  state = document.querySelector("#states input:checked").value;
  boards.forEach((board) => {
    board.table.dataset.state = state;
    board.table.querySelector(".shown").textContent = SHOWN[state];
    board.heads.forEach((head) => head.metric && (head.legend.textContent = words(head).join(" · ")));
    if (board.order.length) sort(board);
  });
}
function apply() {
  boards.forEach((board) => (board.limit = WINDOW));
  filter();
  restate();
  show();
}

// The view as an address: only what differs from the page as it opens.
const toggles = () => all($("filters"), "#themes input, #columns input");
function view() {
  const found = new URLSearchParams(), put = (key, text) => text && found.append(key, text);
  put("q", $("search").value);
  Object.entries(picked).forEach(([key, wanted]) => wanted.forEach((value) => put(key, value)));
  put("state", state === "final" ? "" : state);
  toggles().filter((box) => box.checked && !box.defaultChecked).forEach((box) => put("show", box.value));
  toggles().filter((box) => !box.checked && box.defaultChecked).forEach((box) => put("hide", box.value));
  boards.forEach(({ order }, i) => put(`sort${i + 1}`, order.map(({ head, up }) => (up ? "" : "-") + head.key).join(",")));
  put("compare", compared());
  return found.toString();
}
let waiting = 0;
function address() {
  const text = view();
  $("share").href = text ? `#${text}` : "#table";
  clearTimeout(waiting); // browsers refuse hundreds of addresses a minute, as typing would make them
  waiting = setTimeout(() => {
    if (text || location.hash.includes("=")) history.replaceState(null, "", text ? `#${text}` : location.href.split("#")[0]);
  }, 150);
}
function follow() {
  const asked = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  $("search").value = asked.get("q") ?? "";
  all($("filters"), ".facet").forEach((facet) => all(facet, "input").forEach((box) => {
    box.checked = asked.getAll(facet.dataset.facet).includes(box.value);
  }));
  const wanted = asked.get("state") in ENDS ? asked.get("state") : "final";
  all($("states"), "input").forEach((box) => (box.checked = box.value === wanted));
  toggles().forEach((box) => {
    const other = asked.getAll(box.defaultChecked ? "hide" : "show").includes(box.value);
    box.checked = other !== box.defaultChecked;
  });
  boards.forEach((board, i) => {
    const keys = (asked.get(`sort${i + 1}`) ?? "").split(",").filter(Boolean);
    board.order = keys.map((key) => ({ head: board.heads.find((head) => head.key === key.replace(/^-/, "")), up: key[0] !== "-" }));
    board.order = board.order.filter(({ head }) => head);
    sort(board);
  });
  choose(asked.get("compare") ?? "");
  apply();
}

// The rows, their order and the columns that are shown, under the names and with the digits of leaderboard.csv.
function csv() {
  const parts = new Set(["model", "family", "architecture", "data", "group", "status", "done", "planned", "rank", "rank_worst",
    "ranked", "ranked_by", "unranked", "detectable", "n_seeds", "n_init_seeds", "n_images", "paired"]);
  const entries = boards.flatMap((board) => {
    board.heads.filter(({ open }) => open).forEach(({ key, metric, bounded }) => {
      const ends = metric ? ["", "_floor", "_null", "_init", "_emergence"] : [""];
      ends.forEach((end) => ["", ...(bounded ? ["_lo", "_hi", "_p", "_holm"] : [])].forEach((part) => parts.add(key + end + part)));
    });
    return board.rows.filter((entry) => entry.kept);
  });
  const quote = (value) => value === null ? "" : value === true ? "True" : value === false ? "False" : /[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : String(value);
  const columns = Object.keys(data).filter((name) => parts.has(name));
  return [columns, ...entries.map(({ at }) => columns.map((name) => quote(data[name][at])))].map((line) => line.join(",") + "\n").join("");
}

function listen() {
  boards.forEach((board) => {
    board.heads.forEach((head) => head.cell.querySelector("button").addEventListener("click", (event) => press(board, head, event.shiftKey)));
    board.more.querySelector("button").addEventListener("click", () => { board.limit = Infinity; show(); });
    const frame = board.table.closest(".scroll");
    frame.addEventListener("scroll", () => {
      if (board.more.hidden || frame.scrollTop + 2 * frame.clientHeight < frame.scrollHeight) return;
      board.limit += WINDOW;
      show();
    });
    // The small numbers of a cell, spelt out with all their digits when pointed at.
    board.table.tBodies[0].addEventListener("mouseover", (event) => {
      const cell = event.target.closest("td"), head = cell && board.heads[cell.cellIndex];
      if (!head?.bounded || cell.textContent === "—") return;
      const { at } = board.rows.find(({ row }) => row === cell.parentNode), name = large(head), ends = range(name, at);
      cell.title = [`${values(name)[at] ?? "no value"}, ${ends.includes(null) ? "no interval" : `95 % interval [${ends.join(", ")}]`}`,
        ...(head.metric ? words(head).map((word) => `${word} ${values(head.key + FIELDS[word])[at] ?? "—"}`) : [])].join("\n");
    });
  });
  $("filters").addEventListener("input", apply);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("reset").addEventListener("click", () => { history.replaceState(null, "", "#table"); follow(); });
  $("csv").addEventListener("click", () => {
    const href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    Object.assign(document.createElement("a"), { href, download: "view.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  });
  addEventListener("hashchange", () => location.hash.includes("=") && follow());
  document.addEventListener("click", (event) => all($("filters"), "details[open]").forEach((open) => (open.open = open.contains(event.target))));
  $("filters").addEventListener("keydown", (event) => {
    const open = event.key === "Escape" && event.target.closest("details[open]");
    if (open) { open.open = false; open.querySelector("summary").focus(); }
  });
  addEventListener("beforeprint", () => { boards.forEach((board) => (board.limit = Infinity)); show(); });
}

async function unpack() {
  const packed = atob($("data").textContent), bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
unpack().then((found) => {
  data = found;
  boards.forEach((board) => board.rows.forEach((entry) => {
    const known = ["model", "architecture", "family", "data", "group", "status", "unranked"];
    entry.text = known.map((name) => values(name)[entry.at] ?? "").join(" ").toLowerCase();
  }));
  [$("states"), $("actions"), $("pair")].forEach((part) => (part.hidden = false));
  fill();
  listen();
  follow();
  $("still").media = "not all"; // from here on, the script shows and hides columns
  document.body.classList.add("ready");
});
