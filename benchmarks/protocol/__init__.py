"""The published protocol in small: do method B's frozen filters win on other data, too?"""
