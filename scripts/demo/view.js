// Shows arrays: maps as small pictures, windows of 5x5 as numbers, outputs as bars.

// The colors of values from -1 to 1: cividis, darker to lighter, so that neither a color-blind
// reader nor a gray print loses the sign.
const SIGNED = palette([
  [0, 34, 78], [26, 56, 111], [67, 78, 108], [97, 101, 111], [125, 124, 120],
  [155, 148, 118], [188, 174, 108], [222, 201, 88], [254, 232, 56],
]);
const INK = palette([[0, 0, 0], [255, 255, 255]]);

// 256 colors between the given ones, as ImageData has them in a Uint32Array.
function palette(stops) {
  return Uint32Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (stops.length - 1);
    const before = Math.min(Math.floor(place), stops.length - 2);
    const mixed = stops[before].map((low, channel) =>
      Math.round(low + (stops[before + 1][channel] - low) * (place - before)));
    return (255 << 24) | (mixed[2] << 16) | (mixed[1] << 8) | mixed[0];
  });
}

function colorIndex(value, limit) {
  return Math.min(Math.max(Math.round(127.5 + (127.5 * value) / limit), 0), 255);
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// A canvas of width x height values; the style sheet says how large a `--unit` is.
function createPicture(width, height) {
  const canvas = element("canvas", { width, height });
  canvas.setAttribute("aria-hidden", "true");
  canvas.style.width = `calc(${width} * var(--unit))`;
  canvas.style.height = `calc(${height} * var(--unit))`;
  return pictureOn(canvas);
}

function pictureOn(canvas) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  return { canvas, context, image, pixels: new Uint32Array(image.data.buffer) };
}

// The values from `start` on; -limit and limit get the outermost colors.
function paint(picture, values, limit, start = 0) {
  const { pixels } = picture;
  for (let i = 0; i < pixels.length; i++) pixels[i] = SIGNED[colorIndex(values[start + i], limit)];
  picture.context.putImageData(picture.image, 0, 0);
}

// Pixels from 0 to 255, white on black.
function paintInk(picture, ink) {
  for (let i = 0; i < picture.pixels.length; i++) picture.pixels[i] = INK[ink[i]];
  picture.context.putImageData(picture.image, 0, 0);
}

// A map with a caption, and a frame for the part of it that a unit sees.
function createMap(picture, caption, tag = "figure") {
  const frame = element("div", { className: "frame" }, picture.canvas);
  const box = element("span", { className: "box", hidden: true });
  frame.append(box);
  const words = element(tag === "figure" ? "figcaption" : "span", {
    className: "caption", textContent: caption,
  });
  return { ...picture, figure: element(tag, { className: "map" }, frame, words), box, words };
}

// Frames `size` x `size` of the picture's values, from this row and column on.
function mark({ box, canvas }, row, column, size) {
  box.hidden = false;
  const percent = (value, whole) => `${(100 * value) / whole}%`;
  box.style.left = percent(column, canvas.width);
  box.style.top = percent(row, canvas.height);
  box.style.width = percent(size, canvas.width);
  box.style.height = percent(size, canvas.height);
}

// `size` x `size` values in cells, with numbers where there is room for them.
function paintCells(canvas, values, size, limit) {
  const ratio = window.devicePixelRatio || 1;
  const side = Math.round(canvas.clientWidth * ratio);
  if (!side) return; // not shown
  if (canvas.width !== side) [canvas.width, canvas.height] = [side, side];
  const context = canvas.getContext("2d");
  const cell = side / size;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = `${Math.floor(cell * 0.42)}px system-ui, sans-serif`;
  for (let i = 0; i < size * size; i++) {
    const index = colorIndex(values[i], limit);
    const [left, top] = [(i % size) * cell, Math.floor(i / size) * cell];
    const color = SIGNED[index];
    context.fillStyle = `rgb(${color & 255} ${(color >> 8) & 255} ${(color >> 16) & 255})`;
    context.fillRect(left, top, cell, cell);
    if (cell < 20 * ratio) continue;
    context.fillStyle = index > 118 ? "#000" : "#fff";
    context.fillText(short(values[i]), left + cell / 2, top + cell / 2);
  }
}

// A number for a cell: two digits, without the zero before the point.
function short(value) {
  const text = Math.abs(value) < 9.95 ? value.toFixed(Math.abs(value) < 0.995 ? 2 : 1) : value.toFixed(0);
  return text.replace(/^(-?)0\./, "$1.").replace(/^-(\.00)$/, "$1").replace("-", "−");
}

// A number for a sentence.
function written(value) {
  const digits = Math.abs(value) < 10 ? 3 : Math.abs(value) < 100 ? 2 : 1;
  return value.toFixed(digits).replace("-", "−");
}

function percentage(share) {
  const text = `${(100 * share).toFixed(1)}%`;
  return text === "100.0%" ? ">\u00a099.9%" : text;
}

// A bar from 0 to `share` (-1 to 1 of the half of a signed one; 0 to 1 of another one).
function setBar(bar, share, isSigned) {
  const size = Math.min(Math.abs(share), 1) * (isSigned ? 50 : 100);
  bar.firstChild.style.width = `${size}%`;
  bar.firstChild.style.left = isSigned ? `${share < 0 ? 50 - size : 50}%` : "0";
}

function createBar(isSigned) {
  return element("span", { className: isSigned ? "bar signed" : "bar" }, element("i"));
}

function largest(values) {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0) || 1;
}
