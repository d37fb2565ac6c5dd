// From what was drawn to what the network gets.

const DIGIT_SIZE = 20; // "normalized to fit in a 20x20 pixel box while preserving their aspect ratio"
const STORED_SIZE = 28;
const CENTER = 14; // the pixel that the center of mass falls on
const INPUT_SIZE = 32;
const INK_LEVEL = 64; // of 255: what is at least this light belongs to a stroke

// MNIST's normalization, the last steps of lenet/normalize.py: the digit is cut out, scaled to 20
// pixels on its longer side, and put with its center of mass in the middle of 28x28.
//
// `ink`: size x size numbers, 0 to 255. Returns null where nothing was drawn.
function normalizeDigit(ink, size) {
  const box = boundingBox(ink, size);
  return box && centered(fitted(ink, size, box));
}

function boundingBox(ink, size) {
  let [top, bottom, left, right] = [size, -1, size, -1];
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      if (ink[row * size + column] < INK_LEVEL) continue;
      top = Math.min(top, row);
      bottom = Math.max(bottom, row);
      left = Math.min(left, column);
      right = Math.max(right, column);
    }
  }
  return bottom < 0 ? null : { top, left, height: bottom - top + 1, width: right - left + 1 };
}

// Halves to even numbers, as Python's.
function rounded(number) {
  const up = Math.round(number);
  return up - number === 0.5 && up % 2 ? up - 1 : up;
}

// Each new pixel is the mean of those that it covers; the typical ink becomes 1.
function fitted(ink, size, { top, left, height, width }) {
  const scale = Math.max(height, width) / DIGIT_SIZE;
  const small = {
    height: Math.max(rounded(height / scale), 1),
    width: Math.max(rounded(width / scale), 1),
  };
  const steps = { down: height / small.height, right: width / small.width };
  const values = [];
  for (let row = 0; row < small.height; row++) {
    for (let column = 0; column < small.width; column++) {
      const rows = covered(row, steps.down, height);
      const columns = covered(column, steps.right, width);
      let sum = 0;
      for (let i = rows.first; i < rows.end; i++) {
        for (let j = columns.first; j < columns.end; j++) sum += ink[(top + i) * size + left + j];
      }
      values.push(sum / ((rows.end - rows.first) * (columns.end - columns.first)));
    }
  }
  const most = Math.max(...values) / 2;
  const typical = median(values.filter((value) => value > most));
  return { ...small, values: values.map((value) => Math.min(value / typical, 1)) };
}

// The pixels whose centers lie in the new pixel `place`.
function covered(place, step, limit) {
  const first = Math.min(Math.floor(place * step + 0.5), limit - 1);
  return { first, end: Math.max(Math.min(Math.floor((place + 1) * step + 0.5), limit), first + 1) };
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

// 28x28 pixels, 0 to 255, with the digit's center of mass in the middle.
function centered({ height, width, values }) {
  let [mass, down, right] = [0, 0, 0];
  values.forEach((value, place) => {
    mass += value;
    down += value * Math.floor(place / width);
    right += value * (place % width);
  });
  const place = (center, side) =>
    Math.min(Math.max(rounded(CENTER - center), 0), STORED_SIZE - side);
  const top = place(down / mass, height);
  const left = place(right / mass, width);
  const image = new Uint8Array(STORED_SIZE * STORED_SIZE);
  values.forEach((value, i) => {
    const row = top + Math.floor(i / width);
    image[row * STORED_SIZE + left + (i % width)] = Math.round(255 * value);
  });
  return image;
}

// The stored image, 28x28 or 32x32, extended to 32x32 with background, turned by `rotation` degrees
// (clockwise), moved by `right` and `down` pixels, and with noise of this standard deviation, in
// levels of 255. Between pixels the values are interpolated linearly.
function disturb(image, side, { rotation, right, down, noise }) {
  const margin = (INPUT_SIZE - side) / 2;
  const middle = (INPUT_SIZE - 1) / 2;
  const [sine, cosine] = [Math.sin(rotation * Math.PI / 180), Math.cos(rotation * Math.PI / 180)];
  const at = (row, column) => {
    const [y, x] = [row - margin, column - margin];
    return y < 0 || y >= side || x < 0 || x >= side ? 0 : image[y * side + x];
  };
  const moved = new Uint8Array(INPUT_SIZE * INPUT_SIZE);
  for (let row = 0; row < INPUT_SIZE; row++) {
    for (let column = 0; column < INPUT_SIZE; column++) {
      const [y, x] = [row - middle - down, column - middle - right];
      const [fromRow, fromColumn] = [middle + cosine * y - sine * x, middle + cosine * x + sine * y];
      const [above, before] = [Math.floor(fromRow), Math.floor(fromColumn)];
      const [below, after] = [fromRow - above, fromColumn - before];
      const value =
        (1 - below) * ((1 - after) * at(above, before) + after * at(above, before + 1)) +
        below * ((1 - after) * at(above + 1, before) + after * at(above + 1, before + 1));
      const place = row * INPUT_SIZE + column;
      moved[place] = Math.min(Math.max(Math.round(value + noise * NORMAL[place]), 0), 255);
    }
  }
  return moved;
}

// Normally distributed numbers, the same ones each time, for each pixel (Box and Muller).
const NORMAL = (() => {
  let state = 1;
  const uniform = () => { // Park and Miller's generator
    state = (state * 48271) % 2147483647;
    return state / 2147483647;
  };
  return Array.from({ length: INPUT_SIZE * INPUT_SIZE }, () =>
    Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
})();
