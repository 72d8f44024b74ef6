"""The thread that brings a run's records to MLflow while the run goes on."""

from contextlib import ExitStack
from threading import Condition, Thread

from pretrain.delivery import Delivery
from pretrain.mlflow_server import brief, impatience, without_password

_SECONDS_BETWEEN_ATTEMPTS = 5.0
_LONGEST_PAUSE = 60.0
_SECONDS_TO_STOP = 2.0


class Sender:
    """The thread that delivers. It holds a lock, so that no other process delivers the same records."""

    def __init__(self, delivery: Delivery) -> None:
        self._delivery = delivery
        self._changed = Condition()
        self._asked, self._answered = 0, -1
        self._alone = self._delivered = self._silent = self._stopping = False
        # A daemon: a server that never answers must not keep the process from ending.
        self._thread = Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def send_now(self, seconds: float) -> bool:
        """Ask for an attempt at once, and wait at most so long for its end. Returns whether it has succeeded."""
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._answered >= mine, seconds) and self._delivered

    def stop(self) -> None:
        """Make no further attempts, and let one that is being made end by itself, unless that takes long."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(_SECONDS_TO_STOP)

    def _run(self) -> None:
        pause = _SECONDS_BETWEEN_ATTEMPTS
        with impatience, ExitStack() as lock:
            while True:
                answering = self._asked
                delivered = self._attempt(lock)
                pause = _SECONDS_BETWEEN_ATTEMPTS if delivered else min(2 * pause, _LONGEST_PAUSE)
                with self._changed:
                    self._answered, self._delivered = answering, delivered
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._stopping or self._asked > self._answered, pause)
                    if self._stopping:
                        return

    def _attempt(self, lock: ExitStack) -> bool:
        """Deliver what there is. Says when the server falls silent, and when it is back."""
        place = without_password(self._delivery.uri)
        try:
            if not self._alone:
                lock.enter_context(self._delivery.alone())
                self._alone = True
            self._delivery.send()
        except Exception as error:  # drivers of databases raise what they like, and the thread must live on
            if not self._silent:
                print(f"MLflow: figures wait in {self._delivery.log}; {brief(error)}", flush=True)
            self._silent = True
            return False
        if self._silent:
            print(f"MLflow: {place} has got the figures that waited", flush=True)
        self._silent = False
        return True
