// Each user keeps one WebSocket open: it sends a message, waits for the echo, optionally pauses, and
// repeats.
import { WebSocket } from 'k6/websockets';

const users = parseInt(__ENV.BENCH_USERS);
const seconds = parseInt(__ENV.BENCH_SECONDS);
const pause = parseInt(__ENV.BENCH_PAUSE || '0');
const message = __ENV.BENCH_MESSAGE;

export const options = {
  scenarios: { s: { executor: 'per-vu-iterations', vus: users, iterations: 1, maxDuration: `${seconds + 60}s` } },
};

export default function () {
  const socket = new WebSocket(__ENV.BENCH_URL);
  const until = Date.now() + seconds * 1000;
  socket.onopen = () => socket.send(message);
  socket.onmessage = () => {
    if (pause > 0) {
      setTimeout(() => socket.send(message), pause * 1000);
    } else if (Date.now() < until) {
      socket.send(message);
    } else {
      socket.close();
    }
  };
}
