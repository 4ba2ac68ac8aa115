"""The compiled library and the torch operators on it. Private: the public functions check their arguments first."""
