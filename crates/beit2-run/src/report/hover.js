// Values under the pointer. The report is complete without this.
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
  for (const svg of document.querySelectorAll("svg[data-c]")) {
    const chart = JSON.parse(svg.dataset.c);
    const drawn = chart.series.filter((s) => s.points.length);
    const cursor = svg.querySelector(".cursor");
    const hide = () => { tip.hidden = true; cursor.setAttribute("hidden", ""); };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * chart.width;
      const hits = drawn.map((s) => [s.name, nearest(s.points, x)]);
      if (!hits.length) return;
      const at = hits.map((h) => h[1]).reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      for (const [key, value] of [["x1", at[0]], ["x2", at[0]], ["y1", chart.top], ["y2", chart.bottom]]) cursor.setAttribute(key, value);
      cursor.removeAttribute("hidden");
      tip.textContent = [`${chart.x} ${at[2].toLocaleString("en")}`, ...hits.map((h) => `${h[0]}  ${h[1][3]}`)].join("\n");
      tip.hidden = false;
      const left = event.clientX + 14 + tip.offsetWidth > innerWidth ? event.clientX - 14 - tip.offsetWidth : event.clientX + 14;
      tip.style.left = `${Math.max(0, left)}px`;
      tip.style.top = `${Math.max(0, event.clientY - tip.offsetHeight - 10)}px`;
    });
    svg.addEventListener("pointerleave", hide);
  }
})();
