// The page: draws the instruments one after the other, runs on and off, light and dark, keys, print.
"use strict";

hbp.put = (id, {traces, layout}) => Plotly.react(id, traces, layout, hbp.config);
hbp.charts = () => Array.from(document.querySelectorAll("[data-chart]"));

hbp.drawChart = element => {
  const chart = hbp.data.charts[element.dataset.chart];
  element.classList.toggle("square", chart.kind === "tests");
  Plotly.react(element, ...(({traces, layout}) => [traces, layout, hbp.config])(hbp[chart.kind](chart)));
};

// What is in sight first, then the rest, with pauses in which the page answers.
hbp.drawAll = async () => {
  const pause = () => new Promise(resolve => setTimeout(resolve));
  for (const element of hbp.charts()) {
    hbp.drawChart(element);
    await pause();
  }
  if (document.getElementById("layer-map")) hbp.startLayers();
  document.documentElement.dataset.drawn = String(Math.round(performance.now()));
};

hbp.redraw = () => {
  hbp.charts().forEach(hbp.drawChart);
  if (document.getElementById("layer-map")) hbp.drawLayers();
};

hbp.setTheme = theme => {
  document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = theme === "dark" ? "Light" : "Dark";
};

hbp.toggleRun = run => {
  hbp.visible[run] = !hbp.visible[run];
  document.querySelector(`button.run[data-run="${run}"]`).setAttribute("aria-pressed", String(hbp.visible[run]));
  for (const item of document.querySelectorAll("li[data-run]")) item.classList.toggle("off", !hbp.visible[Number(item.dataset.run)]);
  hbp.redraw();
};

// Left and right go along the points of the first line with values; escape leaves.
hbp.keys = event => {
  const element = event.currentTarget;
  if (event.key === "Escape") { Plotly.Fx.unhover(element); return; }
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
  event.preventDefault();
  const curve = element._fullData.findIndex(trace => trace.hoverinfo !== "skip" && trace.x && trace.x.length > 0);
  if (curve < 0) return;
  const many = element._fullData[curve].x.length, last = Number(element.dataset.at ?? -1);
  const at = Math.max(0, Math.min(many - 1, last < 0 && event.key === "ArrowLeft" ? many - 1 : last + (event.key === "ArrowLeft" ? -1 : 1)));
  element.dataset.at = String(at);
  Plotly.Fx.hover(element, [{curveNumber: curve, pointNumber: at}]);
};

{
  const dark = matchMedia("(prefers-color-scheme: dark)");
  hbp.setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", event => { hbp.setTheme(event.matches ? "dark" : "light"); hbp.redraw(); });
  document.getElementById("theme").addEventListener("click", () => {
    hbp.setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    hbp.redraw();
  });
  document.getElementById("clock").addEventListener("change", event => { hbp.setClock(event.target.value === "time"); hbp.redraw(); });
  for (const button of document.querySelectorAll("button.run")) {
    button.addEventListener("click", () => hbp.toggleRun(Number(button.dataset.run)));
  }
  for (const element of document.querySelectorAll("[data-chart], #layer-curve, #layer-field")) element.addEventListener("keydown", hbp.keys);
  // The observer also speaks when it begins: only what has another size than it was drawn with is drawn anew.
  const sizes = new ResizeObserver(changed => changed.forEach(({target}) => {
    const drawn = target._fullLayout;
    if (!drawn || !target.clientWidth || !target.clientHeight) return;
    if (Math.abs(drawn.width - target.clientWidth) > 1 || Math.abs(drawn.height - target.clientHeight) > 1) Plotly.Plots.resize(target);
  }));
  document.querySelectorAll(".chart").forEach(element => sizes.observe(element));
  let before = null;
  addEventListener("beforeprint", () => { before = document.documentElement.dataset.theme; hbp.setTheme("light"); hbp.redraw(); });
  addEventListener("afterprint", () => { hbp.setTheme(before); hbp.redraw(); });
  hbp.drawAll();
}
