// The page: what was drawn goes through the network, and each layer is shown.

const $ = (id) => document.getElementById(id);
const network = decoded(JSON.parse($("network").textContent));
const { classNames, connections } = network;
const WINDOW = 5; // units of S2 along each side that a unit of C3 sees
const S2_MAPS = network.params.c3.kernel.shape[2];
const [C3_MAPS, C3_SIDE] = [connections.length, 10];
const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)");

const state = {
  stored: null, // {pixels, side}: what was drawn, normalized, or a test example; null: nothing
  unit: { map: 0, row: 0, column: 0 }, // of C3
  followsStrongest: true,
  input: null, // 32x32 pixels, 0 to 255
  layers: null, // what each layer passes on
  timer: null, // of the sliding window
};

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function decoded(network) {
  for (const layer of Object.values(network.params)) {
    for (const array of Object.values(layer)) {
      array.values = new Float32Array(bytes(array.base64).buffer);
    }
  }
  return network;
}

// ---- the drawing area

const pad = $("pad");
const pen = pad.getContext("2d", { willReadFrequently: true });
const PEN_WIDTH = 24; // of 280 pixels: about 2 of 28, once it is scaled
let stroke = null; // where the pen is; null: it is up
let pointer = null; // the one that draws: a second finger, or the palm, does not
let drawn = false; // whether the pad holds a drawing, not an example

function clearPad() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, pad.width, pad.height);
  drawn = false;
}

function padPlace(event) {
  const box = pad.getBoundingClientRect();
  const scale = pad.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
}

function drawTo(place) {
  pen.strokeStyle = "#fff";
  pen.lineWidth = PEN_WIDTH;
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(...stroke);
  pen.lineTo(place[0] + 0.01, place[1]); // a line to the same place would draw nothing
  pen.stroke();
  stroke = place;
}

pad.addEventListener("pointerdown", (event) => {
  if (event.button || stroke) return;
  pointer = event.pointerId;
  pad.setPointerCapture(pointer);
  if (!drawn) clearPad();
  drawn = true;
  pressed(null);
  stroke = padPlace(event);
  drawTo(stroke);
  readPad();
});
pad.addEventListener("pointermove", (event) => {
  if (!stroke || event.pointerId !== pointer) return;
  const passed = event.getCoalescedEvents?.() ?? [];
  for (const each of passed.length ? passed : [event]) drawTo(padPlace(each));
  readPad();
});
for (const name of ["pointerup", "pointercancel"]) {
  pad.addEventListener(name, ({ pointerId }) => {
    if (pointerId === pointer) stroke = null;
  });
}

// What is on the pad, normalized.
function readPad() {
  schedule(() => {
    const { data } = pen.getImageData(0, 0, pad.width, pad.height);
    const ink = Uint8Array.from({ length: pad.width * pad.height }, (_, i) => data[4 * i]);
    const pixels = normalizeDigit(ink, pad.width);
    state.stored = pixels && { pixels, side: STORED_SIZE };
  });
}

function showExample(example) {
  const { side } = example;
  const pixels = bytes(example.pixels);
  const picture = createPicture(side, side);
  paintInk(picture, pixels);
  clearPad();
  pen.imageSmoothingEnabled = false;
  pen.drawImage(picture.canvas, 0, 0, pad.width, pad.height);
  pressed(example);
  schedule(() => (state.stored = { pixels, side }));
}

// The test examples, as buttons.
const exampleButtons = new Map();
for (const kind of ["samples", "mistakes"]) {
  for (const example of network[kind]) {
    const picture = createPicture(example.side, example.side);
    paintInk(picture, bytes(example.pixels));
    const name = classNames[example.label];
    const caption = kind === "mistakes" ? `${name} → ${classNames[example.readAs]}` : name;
    const button = element("button", { type: "button" }, picture.canvas, caption);
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => showExample(example));
    exampleButtons.set(example, button);
    $(kind).append(button);
  }
}

function pressed(example) {
  for (const [each, button] of exampleButtons) {
    button.setAttribute("aria-pressed", String(each === example));
  }
}

$("clear").addEventListener("click", () => {
  clearPad();
  pressed(null);
  schedule(() => (state.stored = null));
});

const DISTURBANCES = ["rotation", "right", "down", "noise"];
const UNITS = { rotation: "°", right: " px", down: " px", noise: " of 255" };
for (const name of DISTURBANCES) $(name).addEventListener("input", () => schedule());
$("reset").addEventListener("click", () => {
  for (const name of DISTURBANCES) $(name).value = 0;
  schedule();
});

// ---- the layers

const normalizedMap = createMap(createPicture(28, 28), "normalized, 28×28");
const inputMap = createMap(createPicture(32, 32), "what the network gets, 32×32");
$("input-maps").append(normalizedMap.figure, inputMap.figure);
const maps = {};
const sides = { c1: 28, s2: 14, c3: C3_SIDE, s4: 5 };
for (const [name, side] of Object.entries(sides)) {
  const count = name === "c1" || name === "s2" ? S2_MAPS : C3_MAPS;
  maps[name] = Array.from({ length: count }, (_, map) => {
    const isChoice = name === "c3";
    const made = createMap(createPicture(side, side), `${map}`, isChoice ? "label" : "figure");
    if (isChoice) {
      const choice = element("input", { type: "radio", name: "c3-map", value: map, checked: !map });
      choice.setAttribute("aria-label", `Map ${map}, sees S2 maps ${connections[map].join(", ")}`);
      choice.addEventListener("change", () => {
        state.unit.map = map;
        showUnit();
      });
      made.figure.prepend(choice);
    }
    const trained = side === 14 || side === 5 ? network.params[name] : null;
    if (trained) {
      const [coefficient, bias] = [trained.coefficient.values[map], trained.bias.values[map]];
      made.figure.append(element("span", {
        textContent: `×\u00a0${two(coefficient)} ${bias < 0 ? "−" : "+"}\u00a0${two(Math.abs(bias))}`,
      }));
    }
    $(`${name}-maps`).append(made.figure);
    return made;
  });
}
function two(value) {
  return value.toFixed(2).replace("-", "−");
}
const c1Kernel = network.params.c1.kernel;
maps.c1.forEach((made, feature) => {
  const picture = createPicture(WINDOW, WINDOW);
  const weights = windowOfKernel(c1Kernel, 0, feature);
  paint(picture, weights, largest(c1Kernel.values));
  picture.canvas.className = "weights";
  made.figure.append(picture.canvas);
});
const f6IsBitmap = Boolean(network.codes);
const grids = { c5: createPicture(20, 6) };
if (network.params.f6) {
  grids.f6 = f6IsBitmap ? createPicture(7, 12) : createPicture(14, 6);
}
for (const [name, picture] of Object.entries(grids)) {
  $(`${name}-maps`).append(createMap(picture, name === "f6" && f6IsBitmap ? "F6" : "").figure);
}
const codeMaps = (network.codes ?? []).map((code, label) => {
  const canvas = element("canvas", { width: 56, height: 96 }); // 8 for a pixel: room for a dot
  const caption = element("span", { className: "caption" });
  const item = element("li", { className: "map" }, classNames[label], canvas, caption);
  canvas.setAttribute("aria-hidden", "true");
  $("codes").append(item);
  return { canvas, caption, item, code };
});
const outputRows = classNames.slice(0, 10).map(() => {
  const row = {
    name: element("span", { className: "name" }),
    bar: createBar(network.output === "squashed"),
    number: element("span", { className: "number" }),
  };
  row.item = element("li", {}, row.name, row.bar, row.number);
  $("outputs").append(row.item);
  return row;
});
paint(pictureOn($("legend")), Array.from({ length: 256 }, (_, i) => i / 127.5 - 1), 1);

function windowOfKernel(kernel, map, feature) {
  return Float32Array.from({ length: WINDOW * WINDOW }, (_, place) => {
    const [i, j] = [Math.floor(place / WINDOW), place % WINDOW];
    return kernel.values[weightIndex(kernel, i, j, map, feature)];
  });
}

function showLayers() {
  paintInk(inputMap, state.input);
  paintInk(miniInput, state.input);
  const blank = new Uint8Array(STORED_SIZE * STORED_SIZE);
  paintInk(normalizedMap, state.stored ? cropped(state.stored) : blank);
  for (const [name, { values, side }] of Object.entries(state.layers)) {
    const limit = largest(values);
    maps[name]?.forEach((made, map) => paint(made, values, limit, map * side * side));
    if (grids[name]) paint(grids[name], values, limit);
    const range = $(`${name}-range`);
    if (range) range.textContent = rangeOf(values);
  }
  if (network.codes) showCodes();
  showOutputs();
  showUnit();
}

function rangeOf(values) {
  return `now ${written(Math.min(...values))} to ${written(Math.max(...values))}`;
}

// Under the mouse: the unit's value, in place of the layer's range.
function sayUnder({ target, offsetX, offsetY, type }) {
  for (const [name, { values, side }] of Object.entries(state.layers ?? {})) {
    const map = maps[name]?.findIndex((made) => made.canvas === target) ?? -1;
    if (map < 0 && grids[name]?.canvas !== target) continue;
    const column = Math.min(Math.floor((target.width * offsetX) / target.clientWidth), target.width - 1);
    const row = Math.min(Math.floor((target.height * offsetY) / target.clientHeight), target.height - 1);
    const unit = Math.max(row, 0) * target.width + Math.max(column, 0);
    const where = map < 0 ? `unit ${unit}` : `map ${map}, row ${row}, column ${column}`;
    const value = values[Math.max(map, 0) * side * side + unit];
    $(`${name}-range`).textContent = type === "pointerout" ? rangeOf(values) : `${where}: ${written(value)}`;
  }
}
for (const type of ["pointermove", "pointerout"]) $("layers").addEventListener(type, sayUnder);

function cropped({ pixels, side }) {
  const margin = (side - STORED_SIZE) / 2;
  return Uint8Array.from({ length: STORED_SIZE ** 2 }, (_, i) =>
    pixels[(Math.floor(i / STORED_SIZE) + margin) * side + (i % STORED_SIZE) + margin]);
}

// F6 beside the bitmaps that the RBF outputs compare it with.
function showCodes() {
  const [f6, output] = [state.layers.f6.values, state.layers.output.values];
  const nearest = output.indexOf(Math.max(...output));
  codeMaps.forEach(({ canvas, caption, item, code }, label) => {
    const context = canvas.getContext("2d");
    code.forEach((bit, i) => {
      const [left, top] = [8 * (i % 7), 8 * Math.floor(i / 7)];
      context.fillStyle = bit > 0 ? "#fee838" : "#00224e";
      context.fillRect(left, top, 8, 8);
      if (bit * f6[i] >= 0) return;
      context.fillStyle = bit > 0 ? "#000" : "#fff";
      context.beginPath();
      context.arc(left + 4, top + 4, 2, 0, 7);
      context.fill();
    });
    caption.textContent = written(-output[label]) + (label === nearest ? ", nearest" : "");
    item.classList.toggle("best", label === nearest);
  });
}

// Labels, the best first.
function ranking(output) {
  return Array.from(output.keys()).sort((a, b) => output[b] - output[a]);
}

function showOutputs() {
  const output = state.layers.output.values;
  const [ranks, shares] = [ranking(output), softmax(output)];
  const shown = classNames.length > 10 ? ranks.slice(0, 10) : classNames.map((_, label) => label);
  const limit = largest(output);
  shown.forEach((label, place) => {
    const { item, name, bar, number } = outputRows[place];
    const isBest = label === ranks[0];
    name.textContent = classNames[label];
    const value = network.output === "rbf" ? -output[label] : output[label];
    setBar(bar, network.output === "softmax" ? shares[label] : value / limit, network.output === "squashed");
    const words = {
      softmax: () => `${percentage(shares[label])} · z ${written(value)}`,
      rbf: () => `distance ${written(value)}`,
      squashed: () => written(value),
    }[network.output]();
    number.textContent = isBest ? `◀ ${words}` : words;
    item.classList.toggle("best", isBest);
  });
  const sure = (label) => network.output === "squashed" ? `output ${written(output[label])}` : percentage(shares[label]);
  const [first, second] = ranks;
  const isEmpty = !state.stored;
  $("answer").textContent = isEmpty ? "–" : classNames[first];
  $("answer").classList.toggle("long", !isEmpty && classNames[first].length > 2);
  $("certainty").textContent = isEmpty ? "Nothing is drawn" : sure(first);
  const next = second === undefined || isEmpty ? "" : `${classNames[second]}: ${sure(second)}`;
  $("runner-up").textContent = next && `next ${next}`;
  $("mini-answer").textContent = isEmpty ? "Nothing is drawn" : `Reads ${classNames[first]}, ${sure(first)}`;
  $("hint").hidden = !isEmpty || drawn;
}

// ---- one unit of C3: what it sees, the products and their sum

const terms = Array.from({ length: S2_MAPS }, (_, map) => {
  const small = createMap(createPicture(14, 14), `S2 map ${map}`);
  const cells = ["values", "weights", "products"].map(() => element("canvas"));
  cells.forEach((canvas) => canvas.setAttribute("aria-hidden", "true"));
  const [bar, number] = [createBar(true), element("span")];
  const product = element("div", { className: "product" }, cells[0], "×", cells[1], "=", cells[2]);
  const sum = element("div", { className: "sum" }, number, bar);
  const row = element("div", { className: "term" }, small.figure, product, sum);
  $("terms").append(row);
  return { small, cells, bar, number, row };
});
const pixelsMap = createMap(createPicture(32, 32), "input, the 14×14 pixels framed");
const cropMap = createMap(createPicture(14, 14), "the pixels that it sees");
$("unit-pixels").append(pixelsMap.figure, cropMap.figure);
const unitMap = { ...pictureOn($("unit-map")), box: $("unit-box") };
const connectionCells = createTable();

// Table I, with the S2 maps down and the C3 maps across.
function createTable() {
  const head = element("tr", {}, element("td"), ...connections.map((_, feature) =>
    element("th", { scope: "col", textContent: feature })));
  const rows = Array.from({ length: S2_MAPS }, (_, map) =>
    element("tr", {}, element("th", { scope: "row", textContent: map }),
      ...connections.map((seen) => element("td", { textContent: seen.includes(map) ? "×" : "" }))));
  $("connections").append(element("thead", {}, head), element("tbody", {}, ...rows));
  return [head, ...rows].map((row) => [...row.children].slice(1));
}

function strongest(map) {
  const { values, side } = state.layers.c3;
  let best = 0;
  for (let i = 1; i < side * side; i++) {
    if (Math.abs(values[map * side * side + i]) > Math.abs(values[map * side * side + best])) best = i;
  }
  return { map, row: Math.floor(best / side), column: best % side };
}

function showUnit() {
  if (!state.layers) return;
  if (state.followsStrongest) state.unit = strongest(state.unit.map);
  const { map: feature, row, column } = state.unit;
  const { s2, c3 } = state.layers;
  const seen = connections[feature];
  const { kernel, bias } = network.params.c3;
  $("strongest").setAttribute("aria-pressed", String(state.followsStrongest));
  setSlider("unit-row", row);
  setSlider("unit-column", column);

  // Back to the pixels: 5x5 units of S2 are made of 10x10 of C1, and those of 14x14 pixels.
  mark(pixelsMap, 2 * row, 2 * column, 14);
  mark(inputMap, 2 * row, 2 * column, 14);
  paintInk(pixelsMap, state.input);
  paintInk(cropMap, Uint8Array.from({ length: 14 * 14 }, (_, i) =>
    state.input[(2 * row + Math.floor(i / 14)) * INPUT_SIZE + 2 * column + (i % 14)]));
  for (let map = 0; map < S2_MAPS; map++) {
    const isSeen = seen.includes(map);
    if (isSeen) {
      mark(maps.c1[map], 2 * row, 2 * column, 10);
      mark(maps.s2[map], row, column, WINDOW);
    }
    for (const made of [maps.c1[map], maps.s2[map]]) {
      made.box.hidden = !isSeen;
      made.figure.classList.toggle("seen", isSeen);
      made.words.textContent = isSeen ? `● ${map}` : `${map}`;
    }
  }
  maps.c3.forEach((made, map) => (made.box.hidden = map !== feature));
  mark(maps.c3[feature], row, column, 1);
  mark(unitMap, row, column, 1);
  paint(unitMap, c3.values, largest(c3.values), feature * c3.side ** 2);
  for (const line of connectionCells) {
    line.forEach((cell, map) => cell.classList.toggle("chosen", map === feature));
  }

  // The products of each map, and their sums.
  const [limit, heaviest] = [largest(s2.values), largest(kernel.values)];
  const found = terms.map((_, map) => seen.includes(map) && multiplied(s2, map, state.unit));
  const largestProduct = largest(found.flatMap((each) => (each ? [...each.products] : [])));
  const sums = found.map((each) => (each ? each.sum : 0));
  const z = sums.reduce((total, sum) => total + sum, bias.values[feature]);
  const longest = largest([...sums, z]);
  terms.forEach(({ small, cells, bar, number, row: line }, map) => {
    line.classList.toggle("apart", !found[map]);
    number.textContent = found[map] ? `sum ${written(sums[map])}` : "not connected";
    if (!found[map]) return;
    paint(small, s2.values, limit, map * s2.side ** 2);
    mark(small, row, column, WINDOW);
    paintCells(cells[0], found[map].values, WINDOW, limit);
    paintCells(cells[1], found[map].weights, WINDOW, heaviest);
    paintCells(cells[2], found[map].products, WINDOW, largestProduct);
    setBar(bar, sums[map] / longest, true);
  });
  const value = c3.values[(feature * c3.side + row) * c3.side + column];
  $("sees").textContent =
    `Map ${feature} sees ${seen.length} of S2’s ${S2_MAPS} maps: ${seen.join(", ")}. Its unit in row ${row}, ` +
    `column ${column} sees 5×5 units of each; they come from 14×14 pixels. ` +
    "What the unit sees × its weights = the products:";
  const sumsInWords = seen.map((map) => written(sums[map])).join(" + ").replaceAll("+ −", "− ");
  const withBias = `${sumsInWords} + bias ${written(bias.values[feature])} = z = ${written(z)}`;
  const follows = network.pool === "max"
    ? "With max pooling C3 passes on z; the activation follows the maximum, in S4."
    : `The activation makes ${written(value)} of z: this unit.`;
  $("total").textContent = `${withBias}. ${follows}`;
  if ($("numbers").open) showProducts(found);
}

// What the unit sees of one map of S2, its weights, and their products.
function multiplied(s2, map, { map: feature, row, column }) {
  const values = Float32Array.from({ length: WINDOW * WINDOW }, (_, place) =>
    s2.values[(map * s2.side + row + Math.floor(place / WINDOW)) * s2.side + column + (place % WINDOW)]);
  const weights = windowOfKernel(network.params.c3.kernel, map, feature);
  const products = values.map((value, i) => value * weights[i]);
  return { values, weights, products, sum: products.reduce((a, b) => a + b) };
}

function showProducts(found) {
  const tables = found.flatMap((each, map) => (each ? [productTable(each.products, map)] : []));
  $("products").replaceChildren(...tables);
}

function productTable(products, map) {
  const rows = Array.from({ length: WINDOW }, (_, i) =>
    element("tr", {}, ...Array.from(products.subarray(WINDOW * i, WINDOW * (i + 1)), (product) =>
      element("td", { textContent: written(product) }))));
  return element("table", {}, element("caption", { textContent: `S2 map ${map}` }), ...rows);
}

function setSlider(id, value, unit = "") {
  $(id).value = value;
  $(`${id}-value`).textContent = `${value}`.replace("-", "−") + unit;
}

function chooseUnit(row, column) {
  state.followsStrongest = false;
  const inside = (place) => Math.min(Math.max(place, 0), C3_SIDE - 1);
  Object.assign(state.unit, { row: inside(row), column: inside(column) });
  showUnit();
}

for (const id of ["unit-row", "unit-column"]) {
  $(id).addEventListener("input", () => chooseUnit(+$("unit-row").value, +$("unit-column").value));
}
$("unit-map").addEventListener("pointerdown", pickUnit);
$("unit-map").addEventListener("pointermove", (event) => event.buttons && pickUnit(event));
function pickUnit(event) {
  const box = event.target.getBoundingClientRect();
  const place = (offset, whole) => Math.floor((C3_SIDE * offset) / whole);
  chooseUnit(place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width));
}
$("strongest").addEventListener("click", () => {
  state.followsStrongest = true;
  showUnit();
});
$("numbers").addEventListener("toggle", showUnit);

// The window goes over the map, row by row. Where motion is to be reduced, one step a click.
$("slide").addEventListener("click", () => {
  if (state.timer) stopSliding();
  else if (reducedMotion.matches) slide();
  else {
    state.timer = setInterval(slide, 150);
    $("slide").setAttribute("aria-pressed", "true");
  }
});
function slide() {
  const next = (state.unit.row * C3_SIDE + state.unit.column + 1) % C3_SIDE ** 2;
  chooseUnit(Math.floor(next / C3_SIDE), next % C3_SIDE);
}
function stopSliding() {
  clearInterval(state.timer);
  state.timer = null;
  $("slide").setAttribute("aria-pressed", "false");
}
$("strongest").addEventListener("click", stopSliding);

// ---- at most once a frame

let changes = null;

// Calls what changes the state, then shows it, with the next frame.
function schedule(change = () => {}) {
  if (!changes) {
    changes = [];
    requestAnimationFrame(() => {
      changes.forEach((each) => each());
      changes = null;
      update();
    });
  }
  changes.push(change);
}

// Runs the network and shows all of it.
function update() {
  const began = performance.now();
  const disturbance = Object.fromEntries(DISTURBANCES.map((name) => [name, +$(name).value]));
  for (const name of DISTURBANCES) setSlider(name, disturbance[name], UNITS[name]);
  const { pixels, side } = state.stored ?? { pixels: new Uint8Array(STORED_SIZE ** 2), side: STORED_SIZE };
  state.input = disturb(pixels, side, disturbance);
  state.layers = forward(network, prepare(network, state.input));
  const computed = performance.now();
  showLayers();
  const [network_ms, all_ms] = [computed - began, performance.now() - began];
  $("speed").textContent = `The network took ${network_ms.toFixed(1)} ms, with all that is shown ${all_ms.toFixed(1)} ms.`;
  announce();
}

// For screen readers, once it stays.
let announcement = null;
function announce() {
  clearTimeout(announcement);
  announcement = setTimeout(() => {
    const words = ["answer", "certainty", "runner-up"].map((id) => $(id).textContent);
    $("status").textContent = state.stored ? `Reads ${words[0]}, ${words[1]}. ${words[2]}` : words[1];
  }, 700);
}

// On a narrow screen, what it reads stays in sight.
const miniInput = pictureOn($("mini-input"));
new IntersectionObserver(([entry]) => ($("mini").hidden = entry.isIntersecting)).observe($("draw"));
window.addEventListener("resize", showUnit);

clearPad();
if (network.samples.length) showExample(network.samples[Math.min(3, network.samples.length - 1)]);
else schedule();
