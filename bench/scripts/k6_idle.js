// Each user sends one request and then waits with an open connection.
import http from 'k6/http';
import { sleep } from 'k6';

export const options = {
  scenarios: { s: { executor: 'constant-vus', vus: parseInt(__ENV.BENCH_USERS), duration: '120s' } },
};

export default function () {
  http.get(__ENV.BENCH_URL);
  sleep(60);
}
