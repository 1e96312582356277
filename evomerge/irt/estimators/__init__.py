"""What a candidate's score over a whole pool of items is, from its answers to some of them."""
