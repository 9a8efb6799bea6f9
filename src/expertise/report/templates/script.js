"use strict";
// A passage: colour by the chosen layer or skill, walk with the arrow keys, name the experts of a token, or
// the weights of its skills.
(function () {
  const source = document.getElementById("passage-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const palette = data.palette || "s";
  const passages = [...document.querySelectorAll(".passage")];
  const tokens = passages.map((passage) => [...passage.querySelectorAll(".t")]);
  const panel = document.querySelector(".panel");
  const hint = panel.querySelector(".hint");
  const place = new Map(tokens.flatMap((list, p) => list.map((token, i) => [token, [p, i]])));
  let passage = 0;
  let choice = data.choices[0];
  let chosen = null;

  function element(name, text, kind) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function line(layer, parts, gates) {
    const item = element("li");
    item.append(element("b", data.layers[layer]), ": ");
    item.append(parts.length === 0 ? "no expert" : parts.length === 1 ? "expert " : "experts ");
    parts.forEach((part, i) => {
      if (i) item.append(", ");
      const gate = gates[i] === undefined ? "" : ` (${gates[i].toFixed(2)})`;
      item.append(`${part}${gate}`);
      const domain = (data.experts[layer] || {})[part];
      if (domain) item.append(" ", element("span", domain, "of"));
    });
    return item;
  }

  function head(token, text) {
    const [p, i] = place.get(token);
    const made = element("p");
    made.append(element("code", token.textContent, `${palette}${data.steps[p][data.choices.indexOf(choice)][i]}`), text);
    return made;
  }

  // Signed as in the tables: with a true minus.
  const signed = (value) => value.toFixed(2).replace("-", "\u2212");

  function weights(token) {
    const [p, i] = place.get(token);
    const list = element("ul");
    data.names.forEach((name, skill) => {
      const item = element("li");
      item.append(element("b", name), `: ${signed(data.weights[p][i][skill])}`);
      list.append(item);
    });
    return [head(token, ""), list];
  }

  function experts(token) {
    const [p, i] = place.get(token);
    const parts = data.parts[p][i];
    const gates = data.gates[p][i];
    const layers = choice === "all" ? parts.map((_, layer) => layer) : [Number(choice)];
    const counts = layers.map((layer) => (parts[layer] || []).length);
    const mean = counts.reduce((a, b) => a + b, 0) / Math.max(1, counts.length);
    const number = Number.isInteger(mean) ? mean : mean.toFixed(2);
    const list = element("ul");
    layers.forEach((layer) => list.append(line(layer, parts[layer] || [], gates[layer] || [])));
    return [head(token, ` ${number} ${mean === 1 ? "expert" : "experts"}${layers.length > 1 ? " on average" : ""}`), list];
  }

  function show(token) {
    panel.replaceChildren(...(data.weights ? weights(token) : experts(token)));
    panel.scrollTop = 0;
  }

  function select(token, focus) {
    const [p] = place.get(token);
    tokens[p].forEach((other) => {
      if (other.tabIndex === 0) other.tabIndex = -1;
      if (other.getAttribute("aria-selected") === "true") other.setAttribute("aria-selected", "false");
    });
    token.tabIndex = 0;
    token.setAttribute("aria-selected", "true");
    chosen = token;
    show(token);
    if (focus) token.focus({ preventScroll: true });
    if (focus) keepInView(token);
  }

  // On a phone the panel covers the lower edge: "nearest" alone would leave the token under it.
  function keepInView(token) {
    const box = token.getBoundingClientRect();
    const cover = panel.getBoundingClientRect();
    const floor = cover.left < box.right && cover.right > box.left ? Math.min(innerHeight, cover.top) : innerHeight;
    if (box.bottom > floor - 8) scrollBy(0, box.bottom - floor + 40);
    else if (box.top < 8) scrollBy(0, box.top - 60);
  }

  function vertical(list, i, direction) {
    const from = list[i].getClientRects()[0];
    let best = -1;
    let bestTop = 0;
    let bestGap = Infinity;
    for (let j = i + direction; j >= 0 && j < list.length; j += direction) {
      const box = list[j].getClientRects()[0];
      if (!box || Math.abs(box.top - from.top) < from.height / 2) continue;
      if (best >= 0 && Math.abs(box.top - bestTop) > from.height / 2) break;
      const gap = Math.abs(box.left - from.left);
      if (gap < bestGap) [best, bestTop, bestGap] = [j, box.top, gap];
    }
    return best;
  }

  passages.forEach((node, p) => {
    const list = tokens[p];
    node.addEventListener("pointerover", (event) => {
      const token = event.target.closest(".t");
      if (token && event.pointerType !== "touch") show(token);
    });
    node.addEventListener("pointerleave", () => chosen && show(chosen));
    node.addEventListener("click", (event) => {
      const token = event.target.closest(".t");
      if (token) select(token, true);
    });
    node.addEventListener("focusin", (event) => {
      const token = event.target.closest(".t");
      if (token && token !== chosen) select(token, false);
    });
    node.addEventListener("keydown", (event) => {
      const found = place.get(event.target.closest(".t"));
      if (!found || event.altKey || event.ctrlKey || event.metaKey) return;
      const i = found[1];
      const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: list.length - 1 }[event.key];
      const next = event.key === "ArrowDown" ? vertical(list, i, 1) : event.key === "ArrowUp" ? vertical(list, i, -1) : to;
      if (next === undefined) return;
      event.preventDefault();
      if (list[next]) select(list[next], true);
    });
  });

  function colour() {
    const index = data.choices.indexOf(choice);
    tokens.forEach((list, p) => list.forEach((token, i) => { token.className = `t ${palette}${data.steps[p][index][i]}`; }));
    document.querySelectorAll(".legends").forEach((legend) => { legend.hidden = legend.dataset.choice !== choice; });
    if (chosen) show(chosen);
  }

  document.querySelectorAll('[name="layer"]').forEach((input) => input.addEventListener("change", () => {
    choice = input.value;
    colour();
  }));
  document.querySelectorAll('[name="domain"]').forEach((input) => input.addEventListener("change", () => {
    passage = Number(input.value);
    passages.forEach((node, p) => { node.hidden = p !== passage; });
    const marked = tokens[passage].find((token) => token.getAttribute("aria-selected") === "true");
    chosen = marked || null;
    if (marked) show(marked);
    else panel.replaceChildren(hint);
  }));
})();

// Heat maps: name the cell under the pointer or the cursor keys; put the columns in another order.
(function () {
  const maps = [...document.querySelectorAll(".heat")].map((svg) => {
    const data = JSON.parse(svg.dataset.map);
    const readout = svg.closest(".map").querySelector(".readout");
    const map = { svg, data, readout, idle: readout.textContent, columns: [...svg.querySelectorAll("g")], groups: data.order.slice() };
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("width", 1);
    cursor.setAttribute("height", 1);
    cursor.style.display = "none";
    svg.append(cursor);
    map.at = [0, 0];
    map.byColumn = new Map(data.order.map((column, placed) => [column, map.columns[placed]]));

    function name(column, row) {
      map.at = [column, row];
      const id = data.order[column];
      cursor.setAttribute("x", column);
      cursor.setAttribute("y", row);
      cursor.style.display = "";
      readout.textContent = `${data.names[id]}, ${data.rows[row]}: ${data.columns[id][row].toFixed(2)}${data.unit}`;
      readout.classList.add("live");
    }
    function rest() {
      if (document.activeElement === svg) return;
      cursor.style.display = "none";
      readout.textContent = map.idle;
      readout.classList.remove("live");
    }
    function point(event) {
      const box = svg.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left) / box.width * data.order.length);
      const row = Math.floor((event.clientY - box.top) / box.height * data.rows.length);
      if (column >= 0 && row >= 0 && column < data.order.length && row < data.rows.length) name(column, row);
    }
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", rest);
    svg.addEventListener("focus", () => name(...map.at));
    svg.addEventListener("blur", rest);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      const column = Math.min(data.order.length - 1, Math.max(0, map.at[0] + move[0]));
      const row = Math.min(data.rows.length - 1, Math.max(0, map.at[1] + move[1]));
      name(column, row);
    });
    map.refresh = () => { if (document.activeElement === svg) name(...map.at); else rest(); };
    return map;
  });

  document.querySelectorAll('[name="sort"]').forEach((input) => input.addEventListener("change", () => {
    document.querySelectorAll("#domains .heat").forEach((svg) => {
      const map = maps.find((each) => each.svg === svg);
      const ids = map.groups.slice().sort((a, b) => a - b);
      const by = Number(input.value);
      if (input.value === "group") map.data.order = map.groups.slice();
      else if (input.value === "id") map.data.order = ids;
      else map.data.order = ids.sort((a, b) => map.data.columns[b][by] - map.data.columns[a][by] || a - b);
      map.data.order.forEach((column, placed) => { map.byColumn.get(column).style.transform = `translateX(${placed}px)`; });
      map.refresh();
    });
  }));
})();
