"use strict";
(() => {
  document.documentElement.classList.add("js");
  const byId = (id) => document.getElementById(id);

  const player = (stage) => {
    const clips = [...stage.querySelectorAll(".clip")].map((clip) => ({
      name: clip.dataset.name,
      frames: [...clip.querySelectorAll("img")],
      canvas: clip.querySelector("canvas"),
    }));
    const reference = clips.find((clip) => clip.name === "reference");
    const numbers = stage.dataset.shown.split(" ").map(Number);
    const [slider, play, difference, gain] = ["frame", "play", "difference", "gain"].map(byId);
    let timer = 0;

    const pixels = (image, canvas) => {
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      return [context, context.getImageData(0, 0, canvas.width, canvas.height)];
    };
    const subtract = (clip, at) => {
      const [, { data: wanted }] = pixels(reference.frames[at], reference.canvas);
      const [context, image] = pixels(clip.frames[at], clip.canvas);
      const factor = Number(gain.value);
      for (let i = 0; i < wanted.length; i += 1) {
        if (i % 4 < 3) image.data[i] = Math.abs(image.data[i] - wanted[i]) * factor;
      }
      context.putImageData(image, 0, 0);
    };
    const show = () => {
      const at = Number(slider.value);
      const subtracting = Boolean(difference?.checked);
      for (const clip of clips) {
        const drawn = subtracting && clip !== reference;
        if (drawn) subtract(clip, at);
        clip.canvas.hidden = !drawn;
        clip.frames.forEach((image, i) => { image.hidden = drawn || i !== at; });
      }
      byId("count").textContent = `frame ${numbers[at] + 1} of ${stage.dataset.total}`;
      slider.setAttribute("aria-valuetext", byId("count").textContent);
    };
    const toggle = (playing) => {
      clearInterval(timer);
      play.setAttribute("aria-pressed", String(playing));
      play.setAttribute("aria-label", playing ? "Pause" : "Play");
      if (!playing) return;
      const step = numbers.length > 1 ? (numbers.at(-1) - numbers[0]) / (numbers.length - 1) : 1;
      timer = setInterval(() => {
        slider.value = (Number(slider.value) + 1) % numbers.length;
        show();
      }, (1000 * step) / Number(stage.dataset.fps));
    };

    slider.addEventListener("input", () => { toggle(false); show(); });
    play.addEventListener("click", () => toggle(play.getAttribute("aria-pressed") !== "true"));
    for (const control of [difference, gain]) control?.addEventListener("change", show);
    show();
    if ("autoplay" in stage.dataset && !matchMedia("(prefers-reduced-motion: reduce)").matches) toggle(true);
    addEventListener("load", () => {
      const loaded = clips.flatMap((clip) => clip.frames).filter((image) => image.naturalWidth);
      byId("ready").textContent = `${clips.length} clips, ${loaded.length} frames loaded.`;
    });
  };

  if (byId("stage")) player(byId("stage"));

  byId("copy")?.addEventListener("click", async () => {
    getSelection().selectAllChildren(byId("command"));
    await navigator.clipboard.writeText(byId("command").textContent);
    byId("copy").textContent = "Copied";
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
})();
