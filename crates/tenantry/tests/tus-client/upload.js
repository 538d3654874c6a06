// Uploads a file by the official tus client, as a JSON object in the first argument says. Says what it does, a JSON object a line.
import { createReadStream } from "node:fs";
import tus from "tus-js-client";

const { endpoint, token, file, filename, urls, chunkSize, abortAt } = JSON.parse(process.argv[2]);
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
const status = (error) => error.originalResponse?.getStatus() ?? null;

let isAborted = false;
const upload = new tus.Upload(createReadStream(file), {
  endpoint,
  headers: { Authorization: `Bearer ${token}` },
  metadata: { filename, filetype: "application/octet-stream" },
  chunkSize: chunkSize ?? Infinity,
  retryDelays: [50, 200, 500, 1000, 2000, 4000, 8000],
  urlStorage: urls ? new tus.FileUrlStorage(urls) : undefined,
  storeFingerprintForResuming: Boolean(urls),
  removeFingerprintOnSuccess: true,
  onUploadUrlAvailable: () => say({ url: upload.url }),
  onAfterResponse: (request, response) =>
    say({
      method: request.getMethod(),
      from: request.getHeader("Upload-Offset") ?? null,
      status: response.getStatus(),
      offset: response.getHeader("Upload-Offset") ?? null,
    }),
  onProgress: (sent) => {
    say({ sent });
    if (abortAt && sent >= abortAt && !isAborted) {
      isAborted = true;
      upload.abort(true).then(
        () => say({ aborted: true }),
        (error) => say({ error: String(error), status: status(error) }),
      );
    }
  },
  onShouldRetry: (error) => {
    say({ retry: String(error), status: status(error) });
    return [null, 409, 423].includes(status(error)) || status(error) >= 500;
  },
  onError: (error) => {
    say({ error: String(error), status: status(error) });
    process.exitCode = 1;
  },
  onSuccess: ({ lastResponse }) => say({ document: lastResponse.getHeader("Content-Location") ?? null }),
});

const [previous] = urls ? await upload.findPreviousUploads() : [];
if (previous) {
  upload.resumeFromPreviousUpload(previous);
  say({ resumed: previous.uploadUrl });
}
upload.start();
