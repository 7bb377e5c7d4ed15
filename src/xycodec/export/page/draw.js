// Pictures of audio and of codes.
"use strict";

const FFT = 512;
const BANDS = 128; // of the picture, linear from 0 Hz to half the rate
const RANGE = 80; // dB below the loudest point

function drawSpectrogram(canvas, samples) {
  const columns = (canvas.width = Math.min(1200, Math.max(1, Math.floor(samples.length / (FFT / 2)))));
  canvas.height = BANDS;
  const levels = new Float32Array(columns * BANDS);
  for (let x = 0; x < columns; x++) {
    const start = Math.floor((x * Math.max(0, samples.length - FFT)) / Math.max(1, columns - 1));
    const power = spectrum(samples.subarray(start, start + FFT));
    for (let y = 0; y < BANDS; y++) {
      const wide = power.length / BANDS;
      let sum = 1e-12;
      for (let i = 0; i < wide; i++) sum += power[y * wide + i];
      levels[x * BANDS + y] = 10 * Math.log10(sum);
    }
  }
  const top = levels.reduce((a, b) => Math.max(a, b), -120);
  paint(canvas, (x, y) => heat(1 + (levels[x * BANDS + BANDS - 1 - y] - top) / RANGE));
}

function drawCodes(canvas, codes, size) {
  canvas.width = Math.max(1, codes[0].length);
  canvas.height = codes.length;
  paint(canvas, (x, y) => heat(codes[0].length ? codes[y][x] / (size - 1) : 0));
}

function paint(canvas, colour) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  for (let y = 0, i = 0; y < canvas.height; y++)
    for (let x = 0; x < canvas.width; x++, i += 4) image.data.set([...colour(x, y), 255], i);
  context.putImageData(image, 0, 0);
}

// From dark blue over red to light yellow.
function heat(value) {
  const v = Math.min(1, Math.max(0, value));
  return [255 * Math.min(1, 1.9 * v), 255 * Math.max(0, 1.5 * v - 0.45), 255 * Math.max(0.12 + 0.5 * v - v * v, 2.2 * v - 1.5)];
}

// Power of the first half of the bins of a Hann-windowed block.
function spectrum(block) {
  const re = new Float64Array(FFT), im = new Float64Array(FFT);
  for (let i = 0; i < FFT; i++) {
    let j = 0;
    for (let bit = 1, out = FFT >> 1; bit < FFT; bit <<= 1, out >>= 1) if (i & bit) j |= out;
    re[j] = (block[i] || 0) * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / FFT));
  }
  for (let size = 2; size <= FFT; size *= 2)
    for (let k = 0; k < size / 2; k++) {
      const c = Math.cos((-2 * Math.PI * k) / size), s = Math.sin((-2 * Math.PI * k) / size);
      for (let a = k; a < FFT; a += size) {
        const b = a + size / 2;
        const x = c * re[b] - s * im[b], y = c * im[b] + s * re[b];
        [re[b], im[b]] = [re[a] - x, im[a] - y];
        re[a] += x;
        im[a] += y;
      }
    }
  return re.subarray(0, FFT / 2).map((value, i) => value * value + im[i] * im[i]);
}
