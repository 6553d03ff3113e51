-- Asks for /items/0 … /items/N-1 in turn, N being the argument; the fields are given with -H.
local requests, last, size = {}, 0, 1

function init(args)
   size = tonumber(args[1])
   for number = 1, size do
      requests[number] = wrk.format("GET", "/items/" .. (number - 1))
   end
end

function request()
   last = last % size + 1
   return requests[last]
end
