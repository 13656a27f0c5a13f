"""The exact laboratory: policies small enough to enumerate, so that every expectation is a sum and not an estimate.

It states what the theorem of arXiv 2404.10719 says and where it stops, and it is the oracle of `algorithms`' tests.
Policies are probability vectors in float64, rewards are vectors, preferences are tables of joint win probabilities.
"""
