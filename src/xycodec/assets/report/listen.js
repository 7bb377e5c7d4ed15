// Clips to look at and to hear.

const sounds = [];

// Only one sounds at a time, and a line on its picture shows where.
const follow = (sound, picture) => {
  const line = h("i");
  const move = () => {
    line.style.left = `${(100 * sound.currentTime) / sound.duration || 0}%`;
    if (!sound.paused) requestAnimationFrame(move);
  };
  sounds.push(sound);
  picture.append(line);
  sound.addEventListener("seeked", move);
  sound.addEventListener("play", () => {
    sounds.filter((other) => other !== sound).forEach((other) => other.pause());
    move();
  });
  picture.addEventListener("click", (event) => {
    sound.currentTime = (event.offsetX / picture.clientWidth) * sound.duration || 0;
    sound.play();
  });
};

const scoreLine = ([name, value]) => {
  const metric = metrics.get(name);
  const shown = metric.pooling === "root" ? Math.sqrt(value) : value;
  return h("span", {}, `${metric.title} `, h("b", {}, fixed(shown, metric.digits)));
};

const player = (one) => {
  const media = [];
  if (one.audio) {
    const sound = h("audio", { controls: "", preload: "metadata", src: one.audio, "aria-label": title(one.codec) });
    const image = h("img", { src: one.picture, alt: `Spectrogram, ${title(one.codec)}` });
    const picture = h("div", { class: "picture" }, image);
    follow(sound, picture);
    media.push(picture, sound);
  } else {
    media.push(one.error ? h("p", { class: "heard lacks" }, one.error) : note("Its audio was not kept."));
  }
  return h("div", { class: "player" },
    h("h4", {}, named(one.codec)),
    media,
    h("div", { class: "scores" }, Object.entries(one.values).filter(([name]) => metrics.has(name)).map(scoreLine)),
    one.heard ? h("p", { class: "heard" }, `Heard: \u201c${one.heard}\u201d`) : null);
};

const clip = (one) => {
  const whole = duration(one.seconds);
  const about = [
    one.source,
    one.speaker ? `speaker ${one.speaker}` : "speaker not known",
    one.seconds > one.shown_s ? `first ${duration(one.shown_s)} of ${whole}` : whole,
  ];
  return h("article", { class: "clip" },
    h("h3", {}, `${one.rank[0].toUpperCase()}${one.rank.slice(1)}: ${one.clip}`),
    note(about.join(" \u00b7 ")),
    one.text ? h("blockquote", {}, one.text) : null,
    one.reference ? note(`No text is known; reference, heard in the original: \u201c${one.reference}\u201d`) : null,
    h("div", { class: "players" }, one.players.map(player)));
};

const listening = () => {
  if (!listen.length) return null;
  const [{ metric, by }] = listen;
  return section("Listen",
    note(`${metric ? `Best, median and worst clip by ${metrics.get(metric).title} of ${title(by)}.` : "The first clips."} `
      + "Pictures are mel spectrograms up to 8 kHz over 80 dB, on one scale for each clip; click one to play from there."),
    listen.map(clip));
};
