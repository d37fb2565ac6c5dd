"use strict";
// LeNet-5's forward pass, as in lenet/model.py: one function a kind of layer, the same names.
//
// A stack of maps is {maps, side, values}: `maps` square maps of `side` x `side` units, one after
// the other, row by row. Sums are computed in float64 and kept as float32.

const ACTIVATIONS = {
  tanh: Math.tanh,
  scaled_tanh: (a) => 1.7159 * Math.tanh((2 / 3) * a), // eq. 6: f(1) = 1, f(-1) = -1
  relu: (a) => Math.max(a, 0),
  silu: (a) => a / (1 + Math.exp(-a)),
  sigmoid: (a) => 1 / (1 + Math.exp(-a)),
};

// Of the four units of each 2x2 square.
const POOLS = {
  average: (a, b, c, d) => (a + b + c + d) / 4,
  sum: (a, b, c, d) => a + b + c + d,
  max: Math.max,
};

// 32x32 pixels, 0 to 255 -> one map, scaled as the run was trained.
function prepare(network, pixels) {
  const scale = {
    unit: (x) => x, // 0 to 1
    paper: (x) => 1.275 * x - 0.1, // background -0.1, ink 1.175
    hundredths: (x) => 2.55 * x, // 0 to 2.55
  }[network.scaling];
  return { maps: 1, side: 32, values: Float32Array.from(pixels, (pixel) => scale(pixel / 255)) };
}

// One prepared image -> what each layer passes on to the next, by its name.
function forward(network, image) {
  const { params, connections } = network;
  const activation = ACTIVATIONS[network.activation];
  // With max pooling the activation follows the maximum.
  const beforePooling = network.pool === "max" ? (a) => a : activation;

  const c1 = apply(beforePooling, convolution(image, params.c1)); // 6 maps of 28x28
  const s2 = apply(activation, subsampling(c1, network.pool, params.s2)); // 6 of 14x14
  const c3 = apply(beforePooling, convolution(s2, params.c3, connections)); // 16 of 10x10
  const s4 = apply(activation, subsampling(c3, network.pool, params.s4)); // 16 of 5x5
  const c5 = apply(activation, convolution(s4, params.c5)); // 120 of 1x1
  if (network.output === "squashed") {
    return { c1, s2, c3, s4, c5, output: apply(activation, linear(c5, params.output)) };
  }
  const f6 = apply(activation, linear(c5, params.f6)); // 84 units
  const output = network.output === "rbf" ? euclideanRBF(f6, network.codes) : linear(f6, params.output);
  return { c1, s2, c3, s4, c5, f6, output };
}

// 5x5 convolutions without padding, plus one bias a map. `connections` says, for each new map,
// which maps it sees; without it each sees all of them.
function convolution(x, { kernel, bias }, connections) {
  const [size, , inputs, features] = kernel.shape;
  const side = x.side - size + 1;
  const all = Array.from({ length: inputs }, (_, map) => map);
  const y = { maps: features, side, values: new Float32Array(features * side * side) };
  for (let feature = 0; feature < features; feature++) {
    const sums = new Float64Array(side * side).fill(bias.values[feature]);
    for (const map of connections ? connections[feature] : all) {
      for (let i = 0; i < size; i++) {
        for (let j = 0; j < size; j++) {
          // This weight meets the map shifted by i rows and j columns.
          const weight = kernel.values[weightIndex(kernel, i, j, map, feature)];
          for (let row = 0; row < side; row++) {
            const start = (map * x.side + row + i) * x.side + j;
            for (let column = 0; column < side; column++) {
              sums[row * side + column] += weight * x.values[start + column];
            }
          }
        }
      }
    }
    y.values.set(sums, feature * side * side);
  }
  return y;
}

// Where a weight of a kernel (rows, columns, inputs, features) is.
function weightIndex({ shape: [, columns, inputs, features] }, i, j, map, feature) {
  return ((i * columns + j) * inputs + map) * features + feature;
}

// The average, sum or maximum of each 2x2 square; where it was trained, times a coefficient plus a
// bias, one a map each (the paper's subsampling).
function subsampling(x, pool, trained) {
  const side = x.side / 2;
  const y = { maps: x.maps, side, values: new Float32Array(x.maps * side * side) };
  for (let map = 0; map < x.maps; map++) {
    const coefficient = trained ? trained.coefficient.values[map] : 1;
    const bias = trained ? trained.bias.values[map] : 0;
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const corner = (map * x.side + 2 * row) * x.side + 2 * column;
        const pooled = POOLS[pool](
          x.values[corner], x.values[corner + 1],
          x.values[corner + x.side], x.values[corner + x.side + 1],
        );
        y.values[(map * side + row) * side + column] = coefficient * pooled + bias;
      }
    }
  }
  return y;
}

// Each unit: a weighted sum of all inputs, plus a bias.
function linear(x, { kernel, bias }) {
  const [inputs, units] = kernel.shape;
  const y = { maps: units, side: 1, values: new Float32Array(units) };
  for (let unit = 0; unit < units; unit++) {
    let sum = bias.values[unit];
    for (let input = 0; input < inputs; input++) {
      sum += x.values[input] * kernel.values[input * units + unit];
    }
    y.values[unit] = sum;
  }
  return y;
}

// Minus the squared distance to each class's code (eq. 7): the nearest bitmap wins.
function euclideanRBF(x, codes) {
  const distances = codes.map((code) => code.reduce((sum, bit, i) => sum + (x.values[i] - bit) ** 2, 0));
  return { maps: codes.length, side: 1, values: Float32Array.from(distances, (d) => -d) };
}

function apply(activation, x) {
  return { ...x, values: x.values.map(activation) };
}

// The logits as probabilities, as scripts.predict has them.
function softmax(logits) {
  const largest = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - largest));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((e) => e / sum);
}
