"""Decisions of a search as functions of plain data: no Ray, no disk, no clock."""
