// The page: a recording or a file to codes, pictures and sound.
"use strict";

const $ = (id) => document.getElementById(id);
let codec, recorder, saved;

const paintNow = () => new Promise((done) => setTimeout(done));

function tell(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function progressOf(what) {
  return (share) => {
    $("bar").value = share;
    tell(`${what} ${Math.round(100 * share)} %`);
    return paintNow();
  };
}

// Runs work with the controls off, and shows what goes wrong in one line.
async function busy(work) {
  for (const control of document.querySelectorAll("button, input, select")) control.disabled = true;
  $("bar").hidden = false;
  try {
    await work();
  } catch (error) {
    tell(error.message || String(error), true);
  }
  $("bar").hidden = true;
  for (const control of document.querySelectorAll("button, input, select")) control.disabled = false;
  $("save").disabled = !saved;
}

async function open(blob, name) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (name.toLowerCase().endsWith(".xyc")) {
    const { codes, samples } = codec.unpack(bytes);
    await hear(codes, samples, name, 0);
    $("original").hidden = true;
    return;
  }
  const rate = codec.about.input_sample_rate;
  let audio;
  try {
    audio = await new OfflineAudioContext(1, 1, rate).decodeAudioData(bytes.buffer);
  } catch {
    throw new Error(`${name}: this browser reads no audio from it`);
  }
  const samples = new Float32Array(audio.length);
  for (let c = 0; c < audio.numberOfChannels; c++)
    audio.getChannelData(c).forEach((value, i) => { samples[i] += value / audio.numberOfChannels; });
  const start = performance.now();
  const codes = await codec.encode(samples, Number($("layers").value), progressOf("encoding"));
  show("original", samples, rate);
  await hear(codes, samples.length, name, performance.now() - start);
}

async function hear(codes, samples, name, encodeMs) {
  const { about } = codec;
  const start = performance.now();
  const audio = await codec.decode(codes, samples, progressOf("decoding"));
  const decodeMs = performance.now() - start;
  show("decoded", audio, about.output_sample_rate);
  drawCodes($("codes"), codes, about.codebook_size);
  saved = { bytes: codec.pack(codes, samples), name: name.replace(/\.[^.]*$/, "") + ".xyc" };
  const seconds = samples / about.input_sample_rate;
  const spent = [encodeMs && `encoded in ${(encodeMs / 1000).toFixed(1)} s`, `decoded in ${(decodeMs / 1000).toFixed(1)} s`];
  tell(`${name}: ${seconds.toFixed(2)} s, ${codes.length} x ${codes[0].length} codes, ${saved.bytes.length} bytes; `
    + spent.filter(Boolean).join(", "));
  $("results").hidden = false;
}

function show(name, samples, rate) {
  const figure = $(name);
  figure.hidden = false;
  drawSpectrogram(figure.querySelector("canvas"), samples);
  const player = figure.querySelector("audio");
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(wav(samples, rate));
}

function wav(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, word) => [...word].forEach((letter, i) => view.setUint8(place + i, letter.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  [[16, 16], [24, rate], [28, 2 * rate], [40, 2 * samples.length]].forEach(([place, n]) => view.setUint32(place, n, true));
  [[20, 1], [22, 1], [32, 2], [34, 16]].forEach(([place, n]) => view.setUint16(place, n, true));
  text(36, "data");
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, Math.max(-32768, Math.min(32767, Math.round(32768 * value))), true));
  return new Blob([view.buffer], { type: "audio/wav" });
}

async function record() {
  if (recorder) {
    recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch {
    tell("no microphone: allow it for this page, or open a file", true);
    return;
  }
  const parts = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    stream.getTracks().forEach((track) => track.stop());
    recorder = undefined;
    $("record").textContent = "Record";
    busy(() => open(new Blob(parts), "recording.webm"));
  };
  recorder.start();
  $("record").textContent = "Stop";
  tell("recording");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([saved.bytes], { type: "application/octet-stream" }));
  link.download = saved.name;
  link.click();
  URL.revokeObjectURL(link.href);
}

$("record").onclick = record;
$("save").onclick = save;
$("file").onchange = () => {
  const [file] = $("file").files;
  if (file) busy(() => open(file, file.name));
};
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  const [file] = event.dataTransfer.files;
  if (file && codec && !$("file").disabled) busy(() => open(file, file.name));
});

if (location.protocol === "file:") {
  tell("browsers give a page on the disk no files: run python -m http.server in this folder and open its address", true);
} else {
  busy(async () => {
    tell("loading the model");
    codec = await Codec.load("model");
    const { about } = codec;
    $("model").textContent = about.model_id;
    for (let n = about.n_q; n >= 1; n--) $("layers").add(new Option(n));
    tell("ready: record something, or open or drop a file");
  });
}
