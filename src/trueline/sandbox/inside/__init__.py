"""What runs on the far side of the wall: standard library only, sent as text to a bare interpreter, never imported
from the project's folder there."""
