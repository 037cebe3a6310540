// Two networks side by side, from the data of the tables: `model/state,model/state` in the address.
const sides = () => ["A", "B"].map((side) => ({ model: $(`model-${side}`).value, state: $(`state-${side}`).value }));
const compared = () => sides()[0].model && sides()[1].model ? sides().map((side) => `${side.model}/${side.state}`).join(",") : "";

function fill() {
  const models = [...new Set(values("model"))].sort(collator.compare);
  for (const side of ["A", "B"]) $(`model-${side}`).replaceChildren(new Option("choose …", ""), ...models.map((model) => new Option(model)));
  $("pair").addEventListener("change", () => { contrast(); address(); });
  $("swap").addEventListener("click", () => { choose(compared().split(",").reverse().join(",")); address(); });
}
function choose(text) {
  const [a, b] = text.split(",").map((side) => side.split("/"));
  [["A", a], ["B", b]].forEach(([side, [model, of] = []]) => {
    $(`model-${side}`).value = model ?? "";
    $(`state-${side}`).value = of ?? "final";
    if ($(`model-${side}`).value !== (model ?? "")) $(`model-${side}`).value = "";
    if (!$(`state-${side}`).value) $(`state-${side}`).value = "final";
  });
  contrast();
}

const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), text === undefined ? {} : { textContent: text }, more);
// A minus B with its interval: the paired one of trained minus untrained where that is asked, else the widest the two leave open.
function difference(key, [a, b], [i, j]) {
  const names = [a, b].map((side) => key + ENDS[side.state]);
  if (i === j && a.state !== b.state) {
    const sign = a.state === "final" ? 1 : -1, name = `${key}_emergence`, value = values(name)[i] ?? null;
    const ends = range(name, i).map((end) => end === null ? null : sign * end);
    return [value === null ? null : sign * value, ...(sign < 0 ? ends.reverse() : ends)];
  }
  const [x, y] = [values(names[0])[i] ?? null, values(names[1])[j] ?? null], [p, q] = [range(names[0], i), range(names[1], j)];
  const less = (m, n) => m === null || n === null ? null : m - n;
  return [less(x, y), less(p[0], q[1]), less(p[1], q[0])];
}
const told = (value, lo, hi) => value === null ? "—" : `${number(value)}\n${lo === null || hi === null ? "no interval" : `[${number(lo)}, ${number(hi)}]`}`;
function contrast() {
  const pair = sides(), open = compared() !== "";
  $("sides").replaceChildren();
  $("compared").textContent = open ? "" : "Choose two models, or one model trained and untrained.";
  if (!open) return;
  const place = (side) => new Map(values("model").flatMap((model, at) => model === side.model ? [[`${values("data")[at]} · ${values("group")[at]}`, at]] : []));
  const [first, second] = pair.map(place), tables = [];
  let clear = 0, total = 0;
  boards.forEach((board) => {
    const heads = board.heads.filter((head) => head.metric && chosen(head));
    const own = new Set(board.rows.map(({ at }) => at));
    for (const [where, i] of first) {
      const j = second.get(where);
      if (j === undefined || !own.has(i)) continue;
      const body = make("tbody");
      heads.forEach((head) => {
        const names = pair.map((side) => head.key + ENDS[side.state]), [value, lo, hi] = difference(head.key, pair, [i, j]);
        if ([i, j].every((at, side) => (values(names[side])[at] ?? null) === null)) return;
        const apart = lo !== null && hi !== null && (lo > 0 || hi < 0), better = head.better === "↑" ? value > 0 : value < 0;
        const verdict = value === null ? "one has no value" : lo === null || hi === null ? "no interval" : !apart ? "not separated"
          : head.better ? `${better ? "A" : "B"} is better` : `${value > 0 ? "A" : "B"} is higher`;
        total += value !== null;
        clear += apart;
        const row = make("tr"), name = make("th", head.cell.title.split(" (")[0], { scope: "row", title: head.cell.title });
        row.append(name, ...[i, j].map((at, side) => make("td", told(values(names[side])[at] ?? null, ...range(names[side], at)))),
          make("td", told(value, lo, hi)),
          make("td", verdict, { className: apart ? "apart" : "" }));
        body.append(row);
      });
      if (!body.rows.length) continue;
      const table = make("table", undefined, { className: "plain numbers" }), head = make("tr"), top = make("thead");
      head.append(...["Metric", "A", "B", "A − B", "Separated"].map((text) => make("th", text, { scope: "col" })));
      top.append(head);
      table.append(make("caption", where), top, body);
      const frame = make("div", undefined, { className: "scroll", tabIndex: 0 });
      frame.setAttribute("role", "region");
      frame.setAttribute("aria-label", `A and B under ${where}`);
      frame.append(table);
      tables.push(frame);
    }
  });
  $("sides").append(...tables);
  const [a, b] = pair.map((side) => `${side.model} (${SHOWN[side.state].toLowerCase()})`);
  $("compared").textContent = tables.length
    ? `A: ${a}. B: ${b}. Separated in ${clear} of ${total} numbers. ` + (pair[0].model === pair[1].model && pair[0].state !== pair[1].state
      ? "Intervals of A − B are those of the emergence." : "Intervals of A − B are the widest that the two intervals leave open: conservative.")
    : `A: ${a}. B: ${b}. They share no data set and group.`;
}
