// Files of the server.

/** Fetch, or an Error of one sentence. */
export async function get(url) {
  const answer = await fetch(url).catch(() => null);
  if (!answer) throw new Error("The server does not answer: is efficientsam3 serve still running?");
  if (!answer.ok) throw new Error(`${url} is not served (${answer.status}): start efficientsam3 serve with it in place.`);
  return answer;
}

/**
 * A file of known length.
 * @param {(percent: number) => void} progress
 * @returns {Promise<Uint8Array>}
 */
export async function download(url, bytes, progress) {
  const content = new Uint8Array(bytes);
  const reader = (await get(url)).body.getReader();
  for (let at = 0; ;) {
    const { done, value } = await reader.read();
    const expected = at + (value?.length ?? 0);
    if (expected > bytes || (done && at < bytes))
      throw new Error(`${url} is not what model.json says: export it again.`);
    if (done) return content;
    content.set(value, at);
    at = expected;
    progress(Math.floor((100 * at) / bytes));
  }
}
