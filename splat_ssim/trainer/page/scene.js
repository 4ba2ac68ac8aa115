// The trained scene in the viewer of the npm package that is embedded above.
const bytes = (id) => Uint8Array.from(atob(document.getElementById(id).textContent), (c) => c.charCodeAt(0));
const unpacked = async (id) =>
  new Response(new Blob([bytes(id)]).stream().pipeThrough(new DecompressionStream("gzip"))).blob();
const container = document.getElementById("scene-viewer");
try {
  const told = JSON.parse(document.getElementById("scene-data").textContent);
  // told.field is that of the shorter side, the viewer's that of the longer one.
  const { clientWidth: width, clientHeight: height } = container;
  const stretch = Math.max(width, height) / Math.min(width, height);
  const field = 2 * Math.atan(Math.tan(told.field / 2) * stretch) * 180 / Math.PI;
  told.settings.cameras[0].initial.fov = field;
  told.settings.animTracks[0].keyframes.values.fov.fill(field);
  const script = new Blob([await unpacked("viewer-script")], { type: "text/javascript" });
  const { createViewer } = await import(URL.createObjectURL(script));
  const viewer = await createViewer({
    container,
    settings: told.settings,
    contentUrl: "data:,",
    contentFilename: told.filename,
    contents: unpacked("scene-file").then((blob) => new Response(blob, { headers: { "Content-Length": blob.size } })),
    renderer: "webgl",
    aa: told.antialiased,
  });
  // Files have their axes upside down for this viewer, and scenes have any direction upwards: told.rotation puts
  // them right as soon as the scene is there.
  viewer.app.root.on("childinsert", (node) => {
    if (node.name === "gsplat") node.setLocalRotation(...told.rotation);
  });
  container.viewer = viewer;
  viewer.events.on("loaded:changed", () => { container.dataset.loaded = "true"; });
  // The scene turns while it is seen.
  let paused = false;
  new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) paused = viewer.state.animationPaused;
    viewer.state.animationPaused = !entry.isIntersecting || paused;
  }).observe(container);
} catch (error) {
  container.hidden = true;
  const note = document.getElementById("scene-note");
  note.textContent = `This browser does not show the scene in 3D (${error}). The pictures below are an orbit around it.`;
  document.getElementById("scene-orbit").hidden = false;
}
