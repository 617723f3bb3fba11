"""How fast a process reads images."""

from __future__ import annotations

import threading


class ReadingSpeed:
    """The images per second that a process could deliver, by the time that its threads take for the images they read.

    So it is known while the devices are slower than the reader, which then waits. It includes what the threads wait for each
    other and for the cores. One thread adds to it, and another may ask.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes, self._images, self._seconds = 1, 0, 0.0
        self._last: float | None = None

    def begin(self, lanes: int) -> None:
        """Sets the number of threads that read at the same time, in all processes that read for this one."""
        with self._lock:
            self._lanes = lanes

    def add(self, images: int, seconds: float) -> None:
        """Adds images, and the seconds that threads took for them, summed over the threads."""
        with self._lock:
            self._images += images
            self._seconds += seconds

    def images_per_second(self) -> float | None:
        """Returns the speed since the last call, or that of the last call if nothing was read since; None if nothing ever was."""
        with self._lock:
            if self._seconds:
                self._last = self._lanes * self._images / self._seconds
            self._images, self._seconds = 0, 0.0
            return self._last
