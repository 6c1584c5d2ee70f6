"""What a checkpoint shows by itself: no user code, no model, one tensor at a time.

`contents` opens it, `survey` reads every tensor once and leaves `facts`; `rules/` judge the facts, and `terminal`,
`document` and `markdown` print what they found. All that judges or prints does without torch.
"""
