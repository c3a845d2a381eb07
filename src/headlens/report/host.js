// The page as host: one small model object, shared by all views, that reads the data blocks of the page.
//
// It keeps to the part of anywidget's model that views use: get, set, on, off, save_changes. A block is
// parsed when it is first asked for, so that a page with many patterns opens at once.

function pageModel() {
  const values = new Map();
  const listeners = new Map();

  const get = (name) => {
    if (!values.has(name)) {
      const block = document.getElementById(`data-${name}`);
      values.set(name, block ? JSON.parse(block.textContent) : undefined);
    }
    return values.get(name);
  };
  const set = (name, value) => {
    values.set(name, value);
    for (const callback of listeners.get(`change:${name}`) ?? []) callback();
  };
  const on = (event, callback) => listeners.set(event, [...(listeners.get(event) ?? []), callback]);
  const off = (event, callback) =>
    listeners.set(event, (listeners.get(event) ?? []).filter((other) => other !== callback));

  return { get, set, on, off, save_changes() {} };
}

const model = pageModel();
for (const [name, { render }] of Object.entries(views)) {
  const el = document.getElementById(`view-${name}`);
  try {
    render({ model, el });
  } catch (error) {
    // One view that fails must neither hide the others nor leave an unexplained gap.
    el.textContent = `This part of the page could not be drawn: ${error.message}`;
    console.error(error);
  }
}
