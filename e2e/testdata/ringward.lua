-- Asks ringward about a request, and lets it pass only after a 204.
local drop = { "remote", "xremote", "xforwarded", "xwebauth", "xauthuser", "xauthrequest", "xauthenti",
  "xrealip", "forwarded", "xringwardtoken", "ringwardproof", "proxyauthorization" }
local own = { ["content-length"] = true, ["transfer-encoding"] = true, ["connection"] = true }

core.register_action("ringward", { "http-req" }, function(txn)
  local headers = txn.http:req_get_headers()
  local ask = {}
  for name, values in pairs(headers) do
    if not own[name] and not name:find("^x%-forwarded") then
      ask[name] = {}
      for _, value in pairs(values) do table.insert(ask[name], value) end
    end
  end
  ask["x-forwarded-for"] = { txn.f:src() }
  ask["x-forwarded-host"] = { txn.f:req_fhdr("host") }
  ask["x-forwarded-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" }
  ask["x-forwarded-method"] = { txn.f:method() }
  ask["x-forwarded-uri"] = { txn.f:pathq() }
  local answer = core.httpclient():get{ url = "http://127.0.0.1:8080/auth/verify?redirect", headers = ask, timeout = 10000 }

  if answer.status ~= 204 then
    local reply = txn:reply{ status = answer.status ~= 0 and answer.status or 502, body = answer.body }
    for name, values in pairs(answer.headers or {}) do
      for _, value in pairs(values) do
        if not own[name] then reply:add_header(name, value) end
      end
    end
    txn:done(reply)
  end
  for name in pairs(headers) do
    for _, prefix in ipairs(drop) do
      if name:gsub("%W", ""):find("^" .. prefix) then txn.http:req_del_header(name) end
    end
  end
  for _, name in ipairs{ "remote-user", "remote-groups", "cookie", "authorization" } do
    txn.http:req_del_header(name)
    for _, value in pairs(answer.headers[name] or {}) do
      if value ~= "" then txn.http:req_add_header(name, value) end
    end
  end
  for _, value in pairs(answer.headers["set-cookie"] or {}) do txn:set_var("txn.renewed", value) end
end)
