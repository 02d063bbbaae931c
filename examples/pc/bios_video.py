"""INT 10h: a screen of text, 80 by 25."""

from __future__ import annotations

from examples.pc.machine import Machine

__all__ = ["BiosVideo"]

COLUMNS, ROWS = 80, 25
MEMORY = 0xB8000
GREY_ON_BLACK = 0x07
BLANK = bytes([ord(" "), GREY_ON_BLACK])
BELL, BACKSPACE, LINE_FEED, RETURN = 7, 8, 10, 13
TEXT_MODE = 3
# Code page 437 draws pictures where other sets have control characters.
PICTURES = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"


class BiosVideo:
    """The screen is in the guest's memory, where it may also write without a call."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._row = self._column = 0
        self._shape = 0x0607
        self._functions = {
            0x00: self._clear,
            0x01: self._set_shape,
            0x02: self._move,
            0x03: self._where,
            0x06: self._scroll_up,
            0x09: self._put_with_attribute,
            0x0A: self._put,
            0x0E: self._teletype,
            0x0F: self._mode,
        }
        self._clear()
        machine.services[0x10] = self._serve

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without blanks at the ends of lines."""
        cells = self._machine.read(MEMORY, ROWS * COLUMNS * 2)[::2]
        text = "".join(PICTURES[c] if c < 32 else bytes([c]).decode("cp437") for c in cells)
        return [text[i : i + COLUMNS].rstrip() for i in range(0, len(text), COLUMNS)]

    def _serve(self) -> None:
        # What a text screen does not know changes nothing, as on the first PCs.
        function = self._functions.get(self._machine.registers.ah)
        if function is not None:
            function()

    def _clear(self) -> None:
        self._machine.write(MEMORY, BLANK * (COLUMNS * ROWS))
        self._row = self._column = 0

    def _set_shape(self) -> None:
        self._shape = self._machine.registers.cx

    def _move(self) -> None:
        self._row, self._column = self._machine.registers.dh, self._machine.registers.dl

    def _where(self) -> None:
        registers = self._machine.registers
        registers.dh, registers.dl, registers.cx = self._row, self._column, self._shape

    def _scroll_up(self) -> None:
        """By AL lines, or all of them; windows other than the whole are not known here."""
        lines = self._machine.registers.al or ROWS
        self._scroll(min(lines, ROWS))

    def _put_with_attribute(self) -> None:
        registers = self._machine.registers
        self._fill(bytes([registers.al, registers.bl]))

    def _put(self) -> None:
        self._fill(bytes([self._machine.registers.al, GREY_ON_BLACK]))

    def _fill(self, cell: bytes) -> None:
        """CX times from the cursor on, which stays; on the last line no further."""
        start = self._row * COLUMNS + self._column
        count = min(self._machine.registers.cx, ROWS * COLUMNS - start)
        self._machine.write(MEMORY + start * 2, cell * max(count, 0))

    def _teletype(self) -> None:
        character = self._machine.registers.al
        if character == BACKSPACE:
            self._column = max(0, self._column - 1)
        elif character == RETURN:
            self._column = 0
        elif character == LINE_FEED:
            self._row += 1
        elif character != BELL:
            here = self._row * COLUMNS + self._column
            self._machine.write(MEMORY + here * 2, bytes([character, GREY_ON_BLACK]))
            self._column += 1
            if self._column == COLUMNS:
                self._row, self._column = self._row + 1, 0
        if self._row == ROWS:
            self._scroll(1)
            self._row = ROWS - 1

    def _scroll(self, lines: int) -> None:
        gone = lines * COLUMNS * 2
        kept = self._machine.read(MEMORY + gone, ROWS * COLUMNS * 2 - gone)
        self._machine.write(MEMORY, kept + BLANK * (lines * COLUMNS))

    def _mode(self) -> None:
        registers = self._machine.registers
        registers.ah, registers.al, registers.bh = COLUMNS, TEXT_MODE, 0
