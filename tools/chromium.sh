#!/bin/sh
# Browser tests need a Chromium. Install Debian's where apt can; elsewhere those tests skip by name.
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing Chromium for the browser tests"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
        >/dev/null 2>&1 || echo "Chromium could not be installed: browser tests will be skipped"
else
    echo "no Chromium here: browser tests will be skipped"
fi
