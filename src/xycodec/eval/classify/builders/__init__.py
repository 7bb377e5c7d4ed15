"""Readers of ARCH's twelve data sets as they are unpacked, one function each."""
