"""Examples of servers around `Recommender`: a FastAPI app and a Ray Serve deployment (extra `serve`)."""
