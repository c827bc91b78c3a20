"""Examine an encoder and a decoder with their real weights before any result is believed."""

__all__ = ["Check", "Report", "examine"]

from vit_lens.doctor.examining import examine
from vit_lens.doctor.reporting import Check, Report
