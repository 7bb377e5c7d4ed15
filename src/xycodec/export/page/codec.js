// The codec in this page: long audio in the windows that the Python package has, and .xyc files.
"use strict";

const MAGIC = "XYC1";
const FIELDS = [
  "codebook_size", "frames", "hop_length", "model", "n_q", "num_samples", "output_sample_rate", "sample_rate",
];

class Codec {
  static async load(folder) {
    const about = await (await fetch(`${folder}/config.json`)).json();
    ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
    ort.env.wasm.wasmPaths = new URL("runtime/", document.baseURI).href;
    const options = { executionProviders: ["wasm"] };
    const encoder = await ort.InferenceSession.create(`${folder}/encoder.onnx`, options);
    const decoder = await ort.InferenceSession.create(`${folder}/decoder.onnx`, options);
    return new Codec(about, encoder, decoder);
  }

  constructor(about, encoder, decoder) {
    Object.assign(this, { about, encoder, decoder });
    this.outputHop = (about.hop_length * about.output_sample_rate) / about.input_sample_rate;
    // Neighbours share a third of a window; each keeps its middle, and a decoded one fades in over a frame.
    const overlap = Math.round(about.window_frames / 3);
    this.step = about.window_frames - overlap;
    this.left = Math.floor(overlap / 2);
    this.fade = Math.min(1, overlap - this.left);
  }

  // Cuts `total` items, `unit` a frame, into windows [start, end, first kept frame, end of kept frames].
  *windows(total, unit) {
    const size = this.about.window_frames * unit;
    for (let start = 0; ; start += this.step * unit) {
      const last = total - start <= size;
      const end = Math.min(start + size, total);
      yield [start, end, start ? this.left : 0, last ? Math.ceil((end - start) / unit) : this.left + this.step];
      if (last) return;
    }
  }

  // Samples (Float32Array at the input rate) -> layers of codes, an array of Int32Array.
  async encode(samples, layers, progress) {
    const codes = Array.from({ length: layers }, () => []);
    for (const [start, end, first, stop] of this.windows(samples.length, this.about.hop_length)) {
      const audio = new ort.Tensor("float32", samples.slice(start, end), [1, end - start]);
      const made = (await this.encoder.run({ audio })).codes;
      const frames = made.dims[2];
      for (let q = 0; q < layers; q++)
        for (let t = first; t < stop; t++) codes[q].push(Number(made.data[q * frames + t]));
      await progress(end / samples.length);
    }
    return codes.map((layer) => Int32Array.from(layer));
  }

  // Layers of codes -> samples at the output rate, as many as last `samples` at the input rate.
  async decode(codes, samples, progress) {
    const total = Math.ceil((samples * this.about.output_sample_rate) / this.about.input_sample_rate);
    const frames = codes[0].length, hop = this.outputHop;
    const audio = new Float32Array(frames * hop);
    let place = 0, beyond = new Float32Array(0);
    for (const [start, end, first, stop] of this.windows(frames, 1)) {
      const data = new BigInt64Array(codes.length * (end - start));
      codes.forEach((layer, q) => {
        for (let t = start; t < end; t++) data[q * (end - start) + t - start] = BigInt(layer[t]);
      });
      const input = new ort.Tensor("int64", data, [1, codes.length, end - start]);
      const made = (await this.decoder.run({ codes: input })).audio.data;
      const block = made.slice(first * hop, stop * hop);
      beyond.forEach((before, i) => { block[i] = before + ((i + 0.5) / (this.fade * hop)) * (block[i] - before); });
      audio.set(block, place);
      place += block.length;
      beyond = made.slice(stop * hop, (stop + this.fade) * hop);
      await progress(end / frames);
    }
    return audio.slice(0, total);
  }

  // A whole .xyc file.
  pack(codes, samples) {
    const { about } = this;
    const frames = codes[0].length, bits = codeBits(about.codebook_size);
    const header = new TextEncoder().encode(JSON.stringify({
      codebook_size: about.codebook_size, frames, hop_length: about.hop_length, model: about.model_id,
      n_q: codes.length, num_samples: samples, output_sample_rate: about.output_sample_rate,
      sample_rate: about.input_sample_rate,
    }));
    const body = 8 + header.length;
    const bytes = new Uint8Array(body + Math.ceil((codes.length * frames * bits) / 8) + 4);
    const view = new DataView(bytes.buffer);
    bytes.set(new TextEncoder().encode(MAGIC));
    view.setUint32(4, header.length, true);
    bytes.set(header, 8);
    let place = 0;
    for (let t = 0; t < frames; t++)
      for (const layer of codes)
        for (let bit = bits - 1; bit >= 0; bit--, place++)
          bytes[body + (place >> 3)] |= ((layer[t] >> bit) & 1) << (7 - (place & 7));
    view.setUint32(bytes.length - 4, crc32(bytes.subarray(0, -4)), true);
    return bytes;
  }

  // What `pack` wrote -> { codes, samples }. Throws an Error whose message is one line for a person.
  unpack(bytes) {
    const fail = (why) => { throw new Error(`not a .xyc file that can be read here: ${why}`); };
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    if (bytes.length < 12 || new TextDecoder().decode(bytes.subarray(0, 4)) !== MAGIC) fail(`it does not begin with ${MAGIC}`);
    const body = 8 + view.getUint32(4, true);
    if (body + 4 > bytes.length) fail("it is cut off");
    if (view.getUint32(bytes.length - 4, true) !== crc32(bytes.subarray(0, -4))) fail("its checksum differs");
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, body)));
    if (FIELDS.some((key) => !(key in header))) fail("its header lacks something");
    const { about } = this, bits = codeBits(header.codebook_size);
    if (header.model !== about.model_id || header.codebook_size !== about.codebook_size || header.n_q > about.n_q)
      fail(`its codes are from model ${header.model}, this page has ${about.model_id}`);
    if (header.frames !== Math.ceil(header.num_samples / header.hop_length)) fail("its length does not fit its frames");
    if (bytes.length !== body + Math.ceil((header.n_q * header.frames * bits) / 8) + 4) fail("it is cut off or too long");
    const codes = Array.from({ length: header.n_q }, () => new Int32Array(header.frames));
    let place = 0;
    for (let t = 0; t < header.frames; t++)
      for (const layer of codes)
        for (let bit = bits - 1; bit >= 0; bit--, place++)
          layer[t] |= ((bytes[body + (place >> 3)] >> (7 - (place & 7))) & 1) << bit;
    if (codes.some((layer) => layer.some((code) => code >= header.codebook_size))) fail("a code is out of range");
    return { codes, samples: header.num_samples };
  }
}

const codeBits = (size) => Math.ceil(Math.log2(size));

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let i = 0; i < 8; i++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
